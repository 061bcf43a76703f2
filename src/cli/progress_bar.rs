//! How far a job is, for the person who waits.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gristmill_shared::{Plan, wire::Progress};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Where stderr is no terminal, a line is printed this often instead.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A progress bar on a terminal, a line now and then elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    bar: ProgressBar,
    lines: Arc<Mutex<Lines>>,
}

#[derive(Debug)]
struct Lines {
    began: Instant,
    last: Instant,
    /// What there is to say beside the numbers.
    notes: String,
    trouble: Option<String>,
}

impl Bar {
    /// A bar that nobody sees yet.
    pub(crate) fn hidden() -> Self {
        let now = Instant::now();
        Self {
            bar: ProgressBar::hidden(),
            lines: Arc::new(Mutex::new(Lines { began: now, last: now, notes: String::new(), trouble: None })),
        }
    }

    /// Shows the bar of a job that said this of itself.
    pub(crate) fn begin(&self, plan: &Plan) {
        if !io::stderr().is_terminal() {
            return;
        }
        self.bar.set_style(style(plan.tasks.is_some()));
        self.bar.set_prefix(plan.unit.clone());
        if let Some(tasks) = plan.tasks {
            self.bar.set_length(tasks);
        }
        self.bar.reset();
        self.bar.set_draw_target(ProgressDrawTarget::stderr());
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// The job moved.
    pub(crate) fn update(&self, progress: &Progress) {
        let account = &progress.account;
        if let (Some(total), None) = (account.total, self.bar.length()) {
            self.bar.set_style(style(true));
            self.bar.set_length(total);
        }
        let is_first = self.bar.position() == 0;
        self.bar.set_position(account.done + account.failed + account.skipped);
        if is_first {
            self.bar.reset_eta(); // what was done before we looked says nothing of the rate
        }
        let mut notes = String::new();
        if account.failed > 0 {
            let _ = write!(notes, ", {} failed", HumanCount(account.failed));
        }
        if !progress.sealed {
            notes.push_str(", splitting…");
        }
        let mut lines = self.lines();
        lines.notes = notes;
        self.show(&lines);
        if self.bar.is_hidden() {
            lines.print(progress);
        }
    }

    /// The broker is in trouble, or no longer.
    pub(crate) fn trouble(&self, trouble: Option<String>) {
        let mut lines = self.lines();
        if lines.trouble == trouble {
            return;
        }
        lines.trouble = trouble;
        let style =
            if lines.trouble.is_some() { style_in_trouble() } else { style(self.bar.length().is_some()) };
        self.bar.set_style(style);
        self.show(&lines);
        if lines.trouble.is_none() {
            self.bar.reset_eta(); // which would otherwise count the time in which nothing could happen
            self.suspend(|| super::say("the broker is well again")); // that it was not, the log has said
        }
    }

    fn show(&self, lines: &Lines) {
        let trouble = lines.trouble.as_ref().map(|trouble| format!(", {trouble}")).unwrap_or_default();
        self.bar.set_message(format!("{}{trouble}", lines.notes));
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
        self.bar.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// Prints something without tearing the bar.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }
}

impl Lines {
    fn print(&mut self, progress: &Progress) {
        if self.last.elapsed() < LINE_EVERY {
            return;
        }
        self.last = Instant::now();
        let account = &progress.account;
        let ended = account.done + account.failed + account.skipped;
        let total = account.total.map_or_else(|| "?".into(), |total| HumanCount(total).to_string());
        let (spent, notes) = (self.began.elapsed(), &self.notes);
        let rate = ended as f64 / spent.as_secs_f64();
        super::say(format_args!("[{spent:.0?}] {}/{total} tasks ({rate:.0}/s){notes}", HumanCount(ended)));
    }
}

/// Without a rate and an end, of which nothing is known.
fn style_in_trouble() -> ProgressStyle {
    ProgressStyle::with_template("[{elapsed}] {human_pos} {prefix}{msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn style(total_known: bool) -> ProgressStyle {
    let template = if total_known {
        "[{elapsed}] {bar:30} {human_pos}/{human_len} {prefix} ({rate}, ETA {remaining}){msg}"
    } else {
        "[{elapsed}] {spinner} {human_pos} {prefix} ({rate}){msg}"
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}/s", HumanCount(state.per_sec() as u64));
        })
        .with_key("remaining", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = match state.per_sec() {
                rate if rate > 0.0 => write!(out, "{:#}", HumanDuration(state.eta())),
                _ => write!(out, "?"),
            };
        })
}
