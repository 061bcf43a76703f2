//! The log on stderr, above the progress bar if there is one.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::Display,
    io::{self, IsTerminal as _, Write},
    panic::PanicHookInfo,
    sync::OnceLock,
    thread,
    time::SystemTime,
};

use clap::ValueEnum;
use gristmill_shared::{TransportRegistry, panic_text};
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::progress_bar::ProgressDisplay;
use crate::Role;

/// The format of stderr, set once.
static LOG_FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// The format of stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// JSON for machines: everything on stderr is an object on a line of its own.
    Json,
}

/// The level of a message that is printed outside of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageLevel {
    /// Information for the person at the terminal.
    Status,
    /// A warning for the person at the terminal.
    Warning,
    /// The reason why the program ends.
    Error,
}

/// Prints a message to stderr, in the format of the log. Ignores errors, for instance if stderr is
/// closed.
pub(super) fn print_message(level: MessageLevel, text: &dyn Display) {
    let (level, mark) = match level {
        MessageLevel::Status => ("INFO", ""),
        MessageLevel::Warning => ("WARN", "warning: "),
        MessageLevel::Error => ("ERROR", "error: "),
    };
    let _ = match LOG_FORMAT.get() {
        Some(LogFormat::Json) => {
            let line = serde_json::json!({
                "timestamp": humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
                "level": level,
                "fields": { "message": text.to_string() },
                "target": "gristmill",
            });
            writeln!(io::stderr(), "{line}")
        }
        _ => writeln!(io::stderr(), "{mark}{text}"),
    };
}

/// The default log filter of a worker or a sink. A target includes those that begin with it, so
/// `gristmill` stands for all our crates.
const SERVER_FILTER: &str = "warn,gristmill=info";
/// The default log filter of programs that submit or run a job: the bar shows the rest.
const CLIENT_FILTER: &str = "warn";

/// Returns the filter with the directives of all transports.
pub(super) fn add_directives(filter: &str, transports: &TransportRegistry) -> String {
    transports.log_directives().fold(filter.into(), |filter: String, more| filter + "," + more)
}

/// Sets the format of stderr for the rest of the process, and returns it. Later calls have no
/// effect.
pub(crate) fn fix_format(format: LogFormat) -> LogFormat {
    *LOG_FORMAT.get_or_init(|| format)
}

/// Another layer that receives events and spans.
type ExtraLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Returns the log filter of a program with this role.
pub(crate) fn default_filter(role: Role, transports: &TransportRegistry) -> String {
    let filter = match role {
        Role::Worker | Role::Sink => SERVER_FILTER,
        Role::Producer | Role::All => CLIENT_FILTER,
    };
    add_directives(filter, transports)
}

/// Starts the log, and logs panics. An invalid filter is reported and replaced by the default. The
/// filter applies to the log only, not to `extra`.
pub(crate) fn init(
    filter: Option<String>,
    default: String,
    format: LogFormat,
    bar: &ProgressDisplay,
    extra: Option<ExtraLayer>,
) {
    let filter = match filter.map(EnvFilter::try_new) {
        Some(Ok(filter)) => filter,
        Some(Err(error)) => {
            super::warn(format_args!("the log filter cannot be read: {error}; using {default}"));
            EnvFilter::new(default)
        }
        None => EnvFilter::new(default),
    };
    build_subscriber(filter, format, bar, extra).init();
    std::panic::set_hook(Box::new(log_panic));
}

/// Logs a panic once, with its location; code that catches the panic reports the consequence.
/// Includes a backtrace only if RUST_BACKTRACE requests it.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let backtrace = Backtrace::capture();
    let captured = backtrace.status() == BacktraceStatus::Captured;
    tracing::error!(
        target: "gristmill",
        thread = thread.name().unwrap_or("unnamed"),
        location = panic.location().map(tracing::field::display),
        backtrace = captured.then(|| tracing::field::display(&backtrace)),
        "panic: {}",
        panic_text(panic.payload())
    );
}

fn build_subscriber(
    filter: EnvFilter,
    format: LogFormat,
    bar: &ProgressDisplay,
    extra: Option<ExtraLayer>,
) -> impl Subscriber + Send + Sync {
    let colours =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = fmt::layer().with_writer(StderrAboveBar(bar.clone()));
    let log = match format {
        LogFormat::Text => log.with_ansi(colours).with_filter(filter).boxed(),
        LogFormat::Json => log.json().with_filter(filter).boxed(),
    };
    tracing_subscriber::registry().with(extra).with(log)
}

#[derive(Clone)]
struct StderrAboveBar(ProgressDisplay);

impl<'a> MakeWriter<'a> for StderrAboveBar {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for StderrAboveBar {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(text))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::filter::filter_fn;

    use super::*;

    /// A disabled span then costs only one comparison of levels.
    #[test]
    fn level_hint_follows_filters() {
        let level = |extra| {
            let filter = EnvFilter::new(SERVER_FILTER);
            build_subscriber(filter, LogFormat::Text, &ProgressDisplay::hidden(), extra).max_level_hint()
        };
        assert_eq!(level(None), Some(LevelFilter::INFO));
        let spans = filter_fn(|metadata| metadata.is_span()).with_max_level_hint(LevelFilter::DEBUG);
        let extra = tracing_subscriber::layer::Identity::new().with_filter(spans);
        assert_eq!(level(Some(extra.boxed())), Some(LevelFilter::DEBUG));
    }
}
