//! The command line: what can be said, and who does it.

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
mod kinds;
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
use gristmill_shared::{Job as _, Registry};
use tokio::runtime::Runtime;

use self::{
    config::{ConfigFlags, Stop},
    flags::LogFlags,
    kinds::Kinds,
    log::Said,
    progress_bar::Bar,
    signals::Signals,
};
use crate::{App, Exit, Role, build_id::name_build, exit::Failure};

/// What every command is given.
pub(crate) struct Context {
    kinds: Kinds,
    registry: Registry,
    version: &'static str,
    bar: Bar,
    signals: Signals,
}

type Outcome = Result<Exit, Failure>;

impl Context {
    /// What must not be left half done is done outside of this.
    async fn unless_interrupted<T>(
        &self,
        what: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            done = what => done,
            () = self.signals.first() => Err(Failure::new(Exit::Interrupted, "interrupted")),
        }
    }
}

/// Does what the command line says.
pub(crate) fn main(app: App, role: Role) -> Exit {
    match std::panic::catch_unwind(AssertUnwindSafe(|| try_main(app, role))) {
        Ok(Ok(exit)) => exit,
        Ok(Err(failure)) => complain(failure.exit, &failure),
        Err(_) => complain(Exit::Bug, &"this is a defect: the panic above"), // the hook has told it
    }
}

fn complain(exit: Exit, why: &dyn Display) -> Exit {
    log::say(Said::Error, why);
    exit
}

fn try_main(app: App, role: Role) -> Outcome {
    gristmill_shared::fail_point::arm(|variable| std::env::var(variable).ok()); // nothing, but in our own tests
    let version = app.version;
    if let Some(build) = app.build {
        name_build(build).map_err(|error| Failure::new(Exit::Bug, error))?;
    }
    let (kinds, registry) = app.into_parts().map_err(|error| Failure::new(Exit::Bug, error))?;
    if let Some(args) = isolated::requested() {
        return isolated::serve(registry, &args);
    }
    let kinds = Kinds(kinds);
    let whole = command(Role::All, &kinds, version);
    flag_conflicts::refuse(&kinds, &whole)?;
    let own = command(role, &kinds, version).name(program_name());
    let configured = match config::read(own, whole, role.name()) {
        Ok(configured) => configured,
        Err(Stop::CommandLine(error)) => return explain(&error, &kinds),
        Err(Stop::Beneath(failure)) => return Err(failure),
    };
    let matches = &configured.matches;
    if ConfigFlags::from_arg_matches(matches).map_err(Failure::usage)?.print_config {
        configured.warnings.iter().for_each(warn);
        print(config::show(&configured))?;
        return Ok(Exit::Ok);
    }
    let bar = Bar::hidden();
    let serves = if role == Role::All { matches.subcommand_name().map_or(role, named) } else { role };
    let logging = LogFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let format = log::choose(logging.format()); // before anything is said
    let export = otlp::begin(matches, serves, version)?;
    log::init(logging.filter(), format, serves, &bar, export.as_ref().map(otlp::Export::layer));
    if let Some(export) = &export {
        export.announce();
    }
    configured.warnings.iter().for_each(warn);
    let runtime = Runtime::new().map_err(|error| Failure::new(Exit::Bug, format!("no runtime: {error}")))?;
    let done = runtime.block_on(async {
        let signals = Signals::listen().map_err(|error| Failure::new(Exit::Bug, error))?;
        let interrupted = signals.clone();
        let context = Context { kinds, registry, version, bar, signals };
        tokio::select! {
            done = dispatch(role, &context, matches) => done,
            () = interrupted.second() => Ok(Exit::Interrupted),
        }
    });
    runtime.shutdown_background(); // a task that does not end must not keep the program
    if let Some(export) = export {
        export.end();
    }
    done
}

/// The role that a subcommand of the whole program takes.
fn named(subcommand: &str) -> Role {
    match subcommand {
        "producer" => Role::Producer,
        "worker" => Role::Worker,
        "sink" => Role::Sink,
        _ => Role::All,
    }
}

/// What this program is called.
fn program_name() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    Path::new(&path).file_name().map_or("gristmill".into(), |name| name.to_string_lossy().into_owned())
}

/// The whole command line of a program with this role.
fn command(role: Role, kinds: &Kinds, version: &'static str) -> Command {
    let command = match role {
        Role::Producer => producer::command(kinds),
        Role::Worker => worker::command(),
        Role::Sink => sink::command(),
        Role::All => Command::new("gristmill")
            .about("Divides one big job over a fleet and counts every task exactly once")
            .after_help(format!("{EXAMPLES}\n\n{EXIT_CODES}"))
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommands([run::command(kinds), producer::command(kinds), worker::command(), sink::command()])
            .subcommands([setup::command(), doctor::command()])
            .subcommands(kinds.know(Spin::KIND).then(drill::command)) // what a drill submits
            .subcommands(generate::commands()),
    };
    let command = match role {
        _ if kinds.are_built_in() => command,
        Role::All => without_examples(command, kinds).after_help(EXIT_CODES),
        Role::Producer | Role::Worker | Role::Sink => without_examples(command, kinds),
    };
    let (about, long_about) = (command.get_about().cloned(), command.get_long_about().cloned());
    let command = ConfigFlags::augment_args(LogFlags::augment_args(command.version(version)));
    // The flags' own text is not the program's.
    let command = command.about(about.unwrap_or_default());
    help::arrange(match long_about {
        Some(long_about) => command.long_about(long_about),
        None => command.long_about(None),
    })
}

/// The command without our examples, which name our programs and our kinds; the kinds' own text stays.
fn without_examples(command: Command, kinds: &Kinds) -> Command {
    command.after_help(None::<&str>).mut_subcommands(|below| {
        if kinds.know(below.get_name()) { below } else { without_examples(below, kinds) }
    })
}

const EXAMPLES: &str = "\
Examples:
  # All in one process, with no broker:
  gristmill run crack --hash f8e966d1e207d02c44511a58dccff2f5429e9a3b --max-length 4

  # A fleet: on each machine a worker, on one a sink, and then jobs.
  export GRISTMILL_BROKER=amqp://user:password@broker:5672
  gristmill sink
  gristmill worker --slots 8
  gristmill producer submit primes --limit 100000000 --wait";

const EXIT_CODES: &str = "\
Exit codes: 0 ok, 1 failed tasks or no answer, 2 usage, 3 broker, 4 bug, 5 a worker's threads are stuck, 130 interrupted";

async fn dispatch(role: Role, context: &Context, matches: &ArgMatches) -> Outcome {
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
            Some(("completions", matches)) => generate::completions(context, matches),
            Some(("man", matches)) => generate::manual(context, matches),
            _ => Err(Failure::new(Exit::Bug, "a subcommand nobody does")),
        },
    }
}

/// Help goes to stdout and is no error; what is wrong is told in a line or two, without the usage.
fn explain(error: &clap::Error, kinds: &Kinds) -> Outcome {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print(); // nobody is left to tell if it cannot be printed
            Ok(Exit::Ok)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Ok(Exit::Usage)
        }
        _ => Err(kinds.unknown(error).unwrap_or_else(|| Failure::usage(brief(error)))),
    }
}

/// What clap says of an error, less the usage and on one line.
fn brief(error: &clap::Error) -> String {
    let text = error.to_string();
    let said = text.split("\n\nUsage:").next().unwrap_or_default();
    let said = said.split("\n\nFor more information").next().unwrap_or_default();
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let words: Vec<_> = said.split_whitespace().collect();
    let said = words.join(" ");
    if said.contains("(hint: ") { said } else { said + " (hint: try --help)" }
}

/// Prints a result. A reader that has gone is no error; a result that cannot be written is one.
///
/// # Errors
/// If stdout is a full disk, for instance.
fn print(result: impl Display) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    written(writeln!(out, "{result}").and_then(|()| out.flush()))
}

/// What writing a result came to.
fn written(result: std::io::Result<()>) -> Result<(), Failure> {
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

/// Says something to the person at the terminal.
fn say(news: impl Display) {
    log::say(Said::News, &news);
}

/// Says something on stderr that somebody should look at.
fn warn(news: impl Display) {
    log::say(Said::Warning, &news);
}
