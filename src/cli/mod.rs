//! The command line: parsing, logging setup, and dispatch to one module per command.

mod config;
mod csv;
mod delays;
mod doctor;
mod drill;
mod flag_conflicts;
mod flags;
mod generate;
mod help;
mod isolated;
pub(crate) mod kinds;
mod ledger_commands;
mod log;
mod metrics;
#[cfg_attr(not(feature = "otlp"), path = "otlp_off.rs")]
mod otlp;
mod output_rows;
mod producer;
mod progress_bar;
mod retry;
mod run;
mod setup;
mod signals;
mod sink;
mod slot_holders;
mod stall_text;
mod state_dir;
mod stdout;
mod wait;
mod worker;

use std::{fmt::Display, future::Future, io::Write as _, panic::AssertUnwindSafe, path::Path};

use clap::{ArgMatches, Args as _, Command, FromArgMatches as _, error::ErrorKind};
use gristmill_jobs::Spin;
use gristmill_shared::{Job as _, Registry, TransportRegistry};
use tokio::runtime::Runtime;

use self::{
    config::{ConfigError, ConfigFlags},
    flags::LogFlags,
    kinds::Kinds,
    log::MessageLevel,
    progress_bar::ProgressDisplay,
    signals::Signals,
};
use crate::{Exit, Role, build_id::name_build, exit::Failure, program::Program, transports::example_url};

/// The state that every command is given.
pub(crate) struct Context {
    kinds: Kinds,
    registry: Registry,
    transports: TransportRegistry,
    version: &'static str,
    bar: ProgressDisplay,
    signals: Signals,
}

type CommandResult = Result<Exit, Failure>;

impl Context {
    /// Waits for `work`, or fails with [`Exit::Interrupted`] at the first signal. Work that must
    /// not be left incomplete is awaited outside of this.
    async fn or_interrupted<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            done = work => done,
            () = self.signals.wait_first() => Err(Failure::new(Exit::Interrupted, "interrupted")),
        }
    }
}

/// Parses the command line, runs the command, and returns the exit code. A panic is [`Exit::Bug`].
pub(crate) fn main(program: Program, role: Role) -> Exit {
    match std::panic::catch_unwind(AssertUnwindSafe(|| try_main(program, role))) {
        Ok(Ok(exit)) => exit,
        Ok(Err(failure)) => report_failure(failure.exit, &failure),
        Err(_) => report_failure(Exit::Bug, &"this is a defect: the panic above"), // the hook has logged it
    }
}

fn report_failure(exit: Exit, why: &dyn Display) -> Exit {
    log::print_message(MessageLevel::Error, why);
    exit
}

fn try_main(program: Program, role: Role) -> CommandResult {
    gristmill_shared::fail_point::arm(|variable| std::env::var(variable).ok()); // only in our own tests
    let version = program.version;
    if let Some(build) = program.build {
        name_build(build).map_err(|error| Failure::new(Exit::Bug, error))?;
    }
    let (kinds, registry, transports) =
        program.into_parts().map_err(|error| Failure::new(Exit::Bug, error))?;
    if let Some(args) = isolated::child_args() {
        return isolated::serve_child(registry, &transports, &args);
    }
    let kinds = Kinds(kinds);
    let whole = command(Role::All, &kinds, &transports, version);
    flag_conflicts::refuse_conflicts(&kinds, &whole)?;
    let own = command(role, &kinds, &transports, version).name(program_name());
    let configured = match config::read(own, whole, role.name(), &transports) {
        Ok(configured) => configured,
        Err(ConfigError::CommandLine(error)) => return explain(&error, &kinds),
        Err(ConfigError::LowerSource(failure)) => return Err(failure),
    };
    let matches = &configured.matches;
    if ConfigFlags::from_arg_matches(matches).map_err(Failure::usage)?.print_config {
        configured.warnings.iter().for_each(warn);
        print(config::config_text(&configured))?;
        return Ok(Exit::Ok);
    }
    let bar = ProgressDisplay::hidden();
    let serves =
        if role == Role::All { matches.subcommand_name().map_or(role, subcommand_role) } else { role };
    let logging = LogFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let format = log::fix_format(logging.format()); // before anything is printed
    let export = otlp::begin(matches, serves, version)?;
    let default = log::default_filter(serves, &transports);
    let layer = export.as_ref().map(otlp::SpanExport::layer);
    log::init(logging.filter(&transports), default, format, &bar, layer);
    if let Some(export) = &export {
        export.announce();
    }
    configured.warnings.iter().for_each(warn);
    let runtime = Runtime::new().map_err(|error| Failure::new(Exit::Bug, format!("no runtime: {error}")))?;
    let done = runtime.block_on(async {
        let signals = Signals::listen().map_err(|error| Failure::new(Exit::Bug, error))?;
        let interrupted = signals.clone();
        let context = Context { kinds, registry, transports, version, bar, signals };
        tokio::select! {
            done = dispatch(role, &context, matches) => done,
            () = interrupted.wait_second() => Ok(Exit::Interrupted),
        }
    });
    runtime.shutdown_background(); // a task that does not end must not block the exit
    if let Some(export) = export {
        export.shut_down();
    }
    done
}

/// Returns the role of a subcommand of the whole program.
fn subcommand_role(subcommand: &str) -> Role {
    match subcommand {
        "producer" => Role::Producer,
        "worker" => Role::Worker,
        "sink" => Role::Sink,
        _ => Role::All,
    }
}

/// Returns the name under which this program was called.
fn program_name() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    Path::new(&path).file_name().map_or("gristmill".into(), |name| name.to_string_lossy().into_owned())
}

/// Builds the whole command line of a program with this role.
fn command(role: Role, kinds: &Kinds, transports: &TransportRegistry, version: &'static str) -> Command {
    let command = match role {
        Role::Producer => producer::command(kinds),
        Role::Worker => worker::command(),
        Role::Sink => sink::command(),
        Role::All => Command::new("gristmill")
            .about("Divides one big job over a fleet and counts every task exactly once")
            .after_help(format!("{}\n\n{EXIT_CODES}", program_examples()))
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommands([run::command(kinds), producer::command(kinds), worker::command(), sink::command()])
            .subcommands([setup::command(), doctor::command()])
            .subcommands(kinds.contains(Spin::KIND).then(drill::command)) // the kind that a drill submits
            .subcommands(generate::commands()),
    };
    let command = match role {
        _ if kinds.is_built_in() => command,
        Role::All => without_examples(command, kinds).after_help(EXIT_CODES),
        Role::Producer | Role::Worker | Role::Sink => without_examples(command, kinds),
    };
    let (about, long_about) = (command.get_about().cloned(), command.get_long_about().cloned());
    let command = config::map_flags(command, &|arg| flags::add_url_forms(arg, transports));
    let command = ConfigFlags::augment_args(LogFlags::augment_args(command.version(version)));
    // The about text of the shared flags is not the program's.
    let command = command.about(about.unwrap_or_default());
    help::arrange(match long_about {
        Some(long_about) => command.long_about(long_about),
        None => command.long_about(None),
    })
}

/// Removes our examples, which name our programs and kinds. Help texts of the kinds themselves
/// stay.
fn without_examples(command: Command, kinds: &Kinds) -> Command {
    command.after_help(None::<&str>).mut_subcommands(|below| {
        if kinds.contains(below.get_name()) { below } else { without_examples(below, kinds) }
    })
}

fn program_examples() -> String {
    format!(
        "\
Examples:
  # All in one process, with no broker:
  gristmill run crack --hash f8e966d1e207d02c44511a58dccff2f5429e9a3b --max-length 4

  # A fleet: on each machine a worker, on one a sink, and then jobs.
  export GRISTMILL_BROKER={}
  gristmill sink
  gristmill worker --slots 8
  gristmill producer submit primes --limit 100000000 --wait",
        example_url("user")
    )
}

const EXIT_CODES: &str = "\
Exit codes: 0 ok, 1 failed tasks or no answer, 2 usage, 3 broker, 4 bug, 5 a worker's threads are stuck, 130 interrupted";

async fn dispatch(role: Role, context: &Context, matches: &ArgMatches) -> CommandResult {
    match role {
        Role::Producer => producer::main(context, matches).await,
        Role::Worker => worker::main(context, matches).await,
        Role::Sink => sink::main(context, matches).await,
        Role::All => match matches.subcommand() {
            Some(("run", matches)) => run::main(context, matches).await,
            Some(("producer", matches)) => producer::main(context, matches).await,
            Some(("worker", matches)) => worker::main(context, matches).await,
            Some(("sink", matches)) => sink::main(context, matches).await,
            Some(("doctor", matches)) => doctor::main(context, matches).await,
            Some(("setup", matches)) => setup::main(context, matches).await,
            Some(("drill", matches)) => drill::main(context, matches).await,
            Some(("completions", matches)) => generate::write_completions(context, matches),
            Some(("man", matches)) => generate::write_manual(context, matches),
            _ => Err(Failure::new(Exit::Bug, "a subcommand without a handler")),
        },
    }
}

/// Prints help to stdout, which is no error. Other errors become a line or two without the usage.
fn explain(error: &clap::Error, kinds: &Kinds) -> CommandResult {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print(); // a closed stdout cannot be reported
            Ok(Exit::Ok)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Ok(Exit::Usage)
        }
        _ => Err(kinds.unknown_kind(error).unwrap_or_else(|| Failure::usage(one_line(error)))),
    }
}

/// Returns the known name that is most similar to the written one, if it is similar enough.
fn nearest_name<'a>(known: impl Iterator<Item = &'a str>, written: &str) -> Option<&'a str> {
    known
        .map(|known| (strsim::damerau_levenshtein(known, written), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 3)
        .min()
        .map(|(_, known)| known)
}

/// Returns the message of a clap error on one line, without the usage.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("\n\nUsage:").next().unwrap_or_default();
    let message = message.split("\n\nFor more information").next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let words: Vec<_> = message.split_whitespace().collect();
    let message = words.join(" ");
    if message.contains("(hint: ") { message } else { message + " (hint: try --help)" }
}

/// Prints a result. A closed pipe is no error; any other failed write is one.
///
/// # Errors
/// If stdout cannot be written, for instance because the disk is full.
fn print(result: impl Display) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    check_written(writeln!(out, "{result}").and_then(|()| out.flush()))
}

/// Converts the result of a write to stdout: a closed pipe is no error.
fn check_written(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::usage(format_args!("cannot write the result to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a result as JSON, on one line.
fn print_json(result: &impl serde::Serialize) -> Result<(), Failure> {
    print(serde_json::to_string(result).map_err(|error| Failure::new(Exit::Bug, error))?)
}

/// Prints a status message to stderr, for the person at the terminal.
fn print_status(text: impl Display) {
    log::print_message(MessageLevel::Status, &text);
}

/// Prints a warning to stderr.
fn warn(text: impl Display) {
    log::print_message(MessageLevel::Warning, &text);
}
