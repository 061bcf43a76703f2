//! How much is measured.

/// How many rounds, and how large.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// For whoever compares.
    pub(crate) name: &'static str,
    /// Rounds of everything that is divided by a baseline.
    pub(crate) rounds: u32,
    /// Messages of the baseline, and of ours with a task each.
    pub(crate) messages: u64,
    /// Tasks of no work.
    pub(crate) tiny_tasks: u64,
    /// How long a job with work takes rayon.
    pub(crate) spin_seconds: u64,
    /// Tasks of the long tail.
    pub(crate) tail_tasks: u64,
    /// How many rounds have one, since each takes long.
    pub(crate) tail_rounds: u32,
    /// Lone tasks, one after the other.
    pub(crate) latency_rounds: usize,
    /// Jobs that end early.
    pub(crate) stops: u32,
    /// Whether memory is looked at after ten million tasks as well as after one.
    pub(crate) ten_million: bool,
}

impl Scale {
    /// Less than a minute, ten minutes, or an hour.
    pub(crate) fn of(quick: bool, full: bool, rounds: Option<u32>) -> Self {
        let usual = Self {
            name: "usual",
            rounds: 5,
            messages: 150_000,
            tiny_tasks: 5_000_000,
            spin_seconds: 10,
            tail_tasks: 200,
            tail_rounds: 1,
            latency_rounds: 200,
            stops: 20,
            ten_million: false,
        };
        let scale = match (quick, full) {
            (true, _) => Self {
                name: "quick",
                rounds: 1,
                messages: 10_000,
                tiny_tasks: 1_000_000,
                spin_seconds: 2,
                tail_tasks: 40,
                latency_rounds: 50,
                stops: 5,
                ..usual
            },
            (false, true) => Self {
                name: "full",
                spin_seconds: 30,
                tail_rounds: 5,
                stops: 100,
                ten_million: true,
                ..usual
            },
            (false, false) => usual,
        };
        Self { rounds: rounds.unwrap_or(scale.rounds), ..scale }
    }
}
