//! Logs go to stderr, above the bar if there is one.

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
use gristmill_shared::panic_text;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::progress_bar::Bar;
use crate::Role;

/// How stderr is written, once that is known.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// How it is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: everything on stderr is an object on a line of its own.
    Json,
}

/// What is said outside of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// For the person at the terminal.
    News,
    /// Also, and they should look at something.
    Warning,
    /// Why the program ends.
    Error,
}

/// Says something on stderr, in the format of the log. Nobody is left to tell if stderr is closed.
pub(super) fn say(what: Said, text: &dyn Display) {
    let (level, mark) = match what {
        Said::News => ("INFO", ""),
        Said::Warning => ("WARN", "warning: "),
        Said::Error => ("ERROR", "error: "),
    };
    let _ = match FORMAT.get() {
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

// What lapin has to say of a connection we say ourselves, once.
/// What an operator should know of a worker or a sink, unless they say otherwise.
const SERVER_FILTER: &str =
    "warn,lapin=off,gristmill=info,gristmill_worker=info,gristmill_sink=info,gristmill_amqp=info";
/// What somebody who submits or runs a job should know besides the bar, unless they say otherwise.
const CLIENT_FILTER: &str = "warn,lapin=off";

/// From now on all that is said is said so, unless another way was chosen before: a process logs in one way.
pub(crate) fn choose(format: LogFormat) -> LogFormat {
    *FORMAT.get_or_init(|| format)
}

/// Somebody else who hears what happens.
type Listener = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts to log, panics too. A filter that cannot be read is told, and the default used; it is for the log alone, not for
/// `listener`.
pub(crate) fn init(
    filter: Option<String>,
    format: LogFormat,
    role: Role,
    bar: &Bar,
    listener: Option<Listener>,
) {
    let default = match role {
        Role::Worker | Role::Sink => SERVER_FILTER,
        Role::Producer | Role::All => CLIENT_FILTER,
    };
    let filter = match filter.map(EnvFilter::try_new) {
        Some(Ok(filter)) => filter,
        Some(Err(error)) => {
            super::warn(format_args!("the log filter cannot be read: {error}; using {default}"));
            EnvFilter::new(default)
        }
        None => EnvFilter::new(default),
    };
    subscriber(filter, format, bar, listener).init();
    std::panic::set_hook(Box::new(log_panic));
}

/// Says where it panicked, once; what comes of it says whoever catches it. A backtrace only if RUST_BACKTRACE asks for it.
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

fn subscriber(
    filter: EnvFilter,
    format: LogFormat,
    bar: &Bar,
    listener: Option<Listener>,
) -> impl Subscriber + Send + Sync {
    let colours =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = fmt::layer().with_writer(AboveTheBar(bar.clone()));
    let log = match format {
        LogFormat::Text => log.with_ansi(colours).with_filter(filter).boxed(),
        LogFormat::Json => log.json().with_filter(filter).boxed(),
    };
    tracing_subscriber::registry().with(listener).with(log)
}

#[derive(Clone)]
struct AboveTheBar(Bar);

impl<'a> MakeWriter<'a> for AboveTheBar {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for AboveTheBar {
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

    /// A span of which nobody wants to know then costs one look at a number.
    #[test]
    fn nothing_is_looked_at_more_closely_than_somebody_wants() {
        let level = |listener| {
            let filter = EnvFilter::new(SERVER_FILTER);
            subscriber(filter, LogFormat::Text, &Bar::hidden(), listener).max_level_hint()
        };
        assert_eq!(level(None), Some(LevelFilter::INFO));
        let spans = filter_fn(|metadata| metadata.is_span()).with_max_level_hint(LevelFilter::DEBUG);
        let listener = tracing_subscriber::layer::Identity::new().with_filter(spans);
        assert_eq!(level(Some(listener.boxed())), Some(LevelFilter::DEBUG));
    }
}
