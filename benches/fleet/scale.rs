//! The size of a run.

/// The number of rounds and the sizes of the jobs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// The name, for comparisons.
    pub(crate) name: &'static str,
    /// The rounds of all figures that are divided by a baseline.
    pub(crate) rounds: u32,
    /// The messages of the baseline, and of jobs with one task in each.
    pub(crate) messages: u64,
    /// The tasks without work.
    pub(crate) tiny_tasks: u64,
    /// The duration under rayon of a job with work, in seconds.
    pub(crate) spin_seconds: u64,
    /// The tasks of the long tail.
    pub(crate) tail_tasks: u64,
    /// The rounds with a long tail, since each takes long.
    pub(crate) tail_rounds: u32,
    /// The lone tasks, one after the other.
    pub(crate) latency_rounds: usize,
    /// The jobs that end early.
    pub(crate) stops: u32,
    /// True if memory is measured after ten million tasks as well as after one.
    pub(crate) ten_million: bool,
}

impl Scale {
    /// Selects a run of less than a minute, of ten minutes, or of an hour.
    pub(crate) fn select(quick: bool, full: bool, rounds: Option<u32>) -> Self {
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
