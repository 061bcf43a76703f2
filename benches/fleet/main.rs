//! The end-to-end benchmark: one command that starts a RabbitMQ of its own and prints one table. See
//! `docs/performance.md` for what the rows mean.
//!
//! ```sh
//! cargo bench --bench fleet
//! cargo bench --bench fleet -- --quick
//! cargo bench --bench fleet -- --only tiny,single --json new.json --compare old.json
//! ```
//!
//! Every process of a measurement is a process here too. Those that are not our own programs are this one, started again
//! with other arguments: the bare loops (`bare …`), and Gristmill's roles with kinds of the benchmark's own
//! (`producer …`, `worker …`, `sink …`, `run …`).

mod bare;
mod bench_env;
mod compare;
mod figure;
mod fleet;
mod kinds;
mod load;
mod machine;
mod process;
mod rows;
mod scale;
mod usage;

use std::{
    env,
    error::Error,
    fs::{self, OpenOptions},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, ValueEnum};

use crate::{
    bare::Loop,
    bench_env::Site,
    figure::Report,
    kinds::{Diary, Given, Hunt},
    load::Load,
    machine::Machine,
    scale::Scale,
};

/// What a step of the benchmark comes to.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The environment variable that names a worker's diary.
const DIARY_VARIABLE: &str = "BENCH_DIARY";

/// Measures a whole fleet on a RabbitMQ of its own, against bare lapin and rayon
#[derive(Debug, Parser)]
struct Flags {
    /// One small round, for a first look: under a minute
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Longer jobs, and ten million tasks for the memory
    #[arg(long)]
    full: bool,
    /// How many rounds; medians count
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Only these rows
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<Row>,
    /// Write the figures to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare with the figures of an older run; exit code 1 if one got worse beyond its tolerance
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Row {
    /// Bare lapin: publish only, consume only
    Bare,
    /// A task a message, against bare lapin
    Single,
    /// Tasks of no work, against bare lapin
    Tiny,
    /// Tasks of 10 µs in `gristmill run`, against rayon
    Local,
    /// Tasks of 10 µs over RabbitMQ, against rayon
    Short,
    /// Tasks of 1 ms over RabbitMQ, against rayon
    Long,
    /// Tasks of 50 to 500 ms, against the ideal schedule
    Tail,
    /// A lone task on an idle fleet, against a bare message there and back
    Latency,
    /// From the commit of a find to the last slot idle
    Stop,
    /// Memory of each role, and the backlog
    Memory,
}

/// A run of the benchmark.
#[derive(Debug)]
struct Bench {
    site: Site,
    scale: Scale,
    report: Report,
}

fn main() -> ExitCode {
    let first = env::args().nth(1);
    match first.as_deref() {
        Some("producer" | "worker" | "sink" | "run") => return role(),
        Some("bare") => return told(in_runtime(bare_process())),
        _ => {}
    }
    let flags = Flags::parse();
    told(in_runtime(measure(flags)))
}

/// One of Gristmill's roles, which knows the benchmark's kinds.
fn role() -> ExitCode {
    if let Some(path) = env::var_os(DIARY_VARIABLE) {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        match file {
            Ok(file) => Diary::keep(file),
            Err(error) => return told(Err(error.into())),
        }
    }
    gristmill::App::new().job::<Given>().job::<Hunt>().main()
}

/// A process of the baseline.
async fn bare_process() -> Outcome<ExitCode> {
    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(subcommand)]
        what: Loop,
    }
    bare::run(Arguments::parse_from(env::args().skip(1)).what).await?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(flags: Flags) -> Outcome<ExitCode> {
    let old = flags.compare.as_deref().map(compare::load).transpose()?; // before minutes are spent
    let scale = Scale::of(flags.quick, flags.full, flags.rounds);
    let site = Site::start().await?;
    let report = Report::new(Machine::look(site.version())?, scale.name);
    let load = Load::begin(&site)?;
    let mut bench = Bench { site, scale, report };
    bench.measure(&|row| flags.only.is_empty() || flags.only.contains(&row)).await?;
    let Bench { site, mut report, .. } = bench;
    report.others = load.of_others(&site)?;
    println!("{report}");
    if let Some(path) = &flags.json {
        fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    let Some(old) = old else { return Ok(ExitCode::SUCCESS) };
    let comparison = compare::compare(&old, &report);
    println!("{}", comparison.table);
    Ok(if comparison.regressions == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Bench {
    /// Round by round, so that what disturbs for a while disturbs all rows alike.
    async fn measure(&mut self, asked: &(dyn Fn(Row) -> bool + Sync)) -> Outcome<()> {
        for round in 1..=self.scale.rounds {
            eprintln!("round {round} of {}", self.scale.rounds);
            if asked(Row::Bare) {
                self.bare_halves().await?;
            }
            if asked(Row::Single) {
                self.single_tasks().await?;
            }
            if asked(Row::Tiny) {
                self.tiny_tasks().await?;
            }
            if asked(Row::Local) || asked(Row::Short) {
                self.short_tasks(asked(Row::Local), asked(Row::Short)).await?;
            }
            if asked(Row::Long) {
                self.long_tasks().await?;
            }
            if asked(Row::Tail) && round <= self.scale.tail_rounds {
                self.long_tail(round).await?;
            }
        }
        if asked(Row::Latency) {
            self.latency().await?;
        }
        if asked(Row::Stop) {
            self.early_stop().await?;
        }
        if asked(Row::Memory) {
            self.memory().await?;
        }
        Ok(())
    }
}

/// Runs to the end; what goes wrong is told.
fn in_runtime(what: impl Future<Output = Outcome<ExitCode>>) -> Outcome<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(what)
}

fn told(outcome: Outcome<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}
