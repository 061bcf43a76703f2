//! The progress of a job, shown on stderr.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gristmill_shared::{Plan, wire::Progress};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Interval of progress lines if stderr is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// A progress bar on a terminal; elsewhere a line every [`LINE_INTERVAL`].
#[derive(Debug, Clone)]
pub(crate) struct ProgressDisplay {
    bar: ProgressBar,
    lines: Arc<Mutex<StatusLines>>,
}

#[derive(Debug)]
struct StatusLines {
    began: Instant,
    last: Instant,
    /// Text that follows the numbers.
    notes: String,
    trouble: Option<String>,
}

impl ProgressDisplay {
    /// Returns a bar that is not shown yet.
    pub(crate) fn hidden() -> Self {
        let now = Instant::now();
        Self {
            bar: ProgressBar::hidden(),
            lines: Arc::new(Mutex::new(StatusLines {
                began: now,
                last: now,
                notes: String::new(),
                trouble: None,
            })),
        }
    }

    /// Shows the bar of a job with this plan.
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

    /// Updates the bar, or prints a line if one is due.
    pub(crate) fn update(&self, progress: &Progress) {
        let account = &progress.account;
        if let (Some(total), None) = (account.total, self.bar.length()) {
            self.bar.set_style(style(true));
            self.bar.set_length(total);
        }
        let is_first = self.bar.position() == 0;
        self.bar.set_position(account.done + account.failed + account.skipped);
        if is_first {
            self.bar.reset_eta(); // earlier tasks say nothing about the rate
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

    /// Sets or clears the note about a broker problem.
    pub(crate) fn set_trouble(&self, trouble: Option<String>) {
        let mut lines = self.lines();
        if lines.trouble == trouble {
            return;
        }
        lines.trouble = trouble;
        let style =
            if lines.trouble.is_some() { trouble_style() } else { style(self.bar.length().is_some()) };
        self.bar.set_style(style);
        self.show(&lines);
        if lines.trouble.is_none() {
            self.bar.reset_eta(); // without the time of the outage
            self.suspend(|| super::print_status("the broker works again")); // the log reported the loss
        }
    }

    fn show(&self, lines: &StatusLines) {
        let trouble = lines.trouble.as_ref().map(|trouble| format!(", {trouble}")).unwrap_or_default();
        self.bar.set_message(format!("{}{trouble}", lines.notes));
    }

    fn lines(&self) -> MutexGuard<'_, StatusLines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hides the bar.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
        self.bar.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// Runs `print` while the bar is cleared.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }
}

impl StatusLines {
    fn print(&mut self, progress: &Progress) {
        if self.last.elapsed() < LINE_INTERVAL {
            return;
        }
        self.last = Instant::now();
        let account = &progress.account;
        let ended = account.done + account.failed + account.skipped;
        let total = account.total.map_or_else(|| "?".into(), |total| HumanCount(total).to_string());
        let (spent, notes) = (self.began.elapsed(), &self.notes);
        let rate = ended as f64 / spent.as_secs_f64();
        super::print_status(format_args!(
            "[{spent:.0?}] {}/{total} tasks ({rate:.0}/s){notes}",
            HumanCount(ended)
        ));
    }
}

/// Returns a style without rate and ETA, which are unknown while the broker has a problem.
fn trouble_style() -> ProgressStyle {
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
