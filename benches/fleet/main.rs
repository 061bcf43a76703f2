//! The end-to-end benchmark: one command that starts a RabbitMQ of its own and prints one table.
//! See `docs/performance.md` for the meaning of the rows.
//!
//! ```sh
//! cargo bench --bench fleet
//! cargo bench --bench fleet -- --quick
//! cargo bench --bench fleet -- --only tiny,single --json new.json --compare old.json
//! ```
//!
//! Every process of a measurement is a process here too. A process that is not a released program
//! is this program, started again with other arguments: the bare loops (`bare …`), and Gristmill's
//! roles with kinds of the benchmark's own (`producer …`, `worker …`, `sink …`, `run …`).

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
    bare::BareLoop,
    bench_env::BenchEnv,
    figure::BenchReport,
    kinds::{GivenSpin, Hunt, TaskLog},
    load::BackgroundLoad,
    machine::Machine,
    scale::Scale,
};

/// The result of a step of the benchmark.
type BenchResult<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The environment variable that names the file of a worker's task log.
const TASK_LOG_VARIABLE: &str = "BENCH_DIARY";

/// Measures a whole fleet on a RabbitMQ of its own, against bare lapin and rayon
#[derive(Debug, Parser)]
struct BenchFlags {
    /// One small round, for a first look: under a minute
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Longer jobs, and ten million tasks for the memory
    #[arg(long)]
    full: bool,
    /// Number of rounds; medians count
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Only these rows
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<RowName>,
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

/// A row of the benchmark that can be selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RowName {
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
    env: BenchEnv,
    scale: Scale,
    report: BenchReport,
}

fn main() -> ExitCode {
    let first = env::args().nth(1);
    match first.as_deref() {
        Some("producer" | "worker" | "sink" | "run") => return role(),
        Some("bare") => return exit_code(in_runtime(bare_process())),
        _ => {}
    }
    let flags = BenchFlags::parse();
    exit_code(in_runtime(measure(flags)))
}

/// Runs one of Gristmill's roles, which knows the benchmark's kinds.
fn role() -> ExitCode {
    if let Some(path) = env::var_os(TASK_LOG_VARIABLE) {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
        match file {
            Ok(file) => TaskLog::write_to(file),
            Err(error) => return exit_code(Err(error.into())),
        }
    }
    gristmill::App::new().job::<GivenSpin>().job::<Hunt>().main()
}

/// Runs a process of the baseline.
async fn bare_process() -> BenchResult<ExitCode> {
    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(subcommand)]
        command: BareLoop,
    }
    bare::run(Arguments::parse_from(env::args().skip(1)).command).await?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(flags: BenchFlags) -> BenchResult<ExitCode> {
    let old = flags.compare.as_deref().map(compare::load).transpose()?; // fails before minutes are spent
    let scale = Scale::select(flags.quick, flags.full, flags.rounds);
    let env = BenchEnv::start().await?;
    let report = BenchReport::new(Machine::detect(env.version())?, scale.name);
    let load = BackgroundLoad::start(&env)?;
    let mut bench = Bench { env, scale, report };
    bench.measure(&|row| flags.only.is_empty() || flags.only.contains(&row)).await?;
    let Bench { env, mut report, .. } = bench;
    report.others = load.share_of_others(&env)?;
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
    /// Measures round by round, so that a temporary disturbance affects all rows alike.
    async fn measure(&mut self, asked: &(dyn Fn(RowName) -> bool + Sync)) -> BenchResult<()> {
        for round in 1..=self.scale.rounds {
            eprintln!("round {round} of {}", self.scale.rounds);
            if asked(RowName::Bare) {
                self.measure_bare_halves().await?;
            }
            if asked(RowName::Single) {
                self.measure_single_tasks().await?;
            }
            if asked(RowName::Tiny) {
                self.measure_tiny_tasks().await?;
            }
            if asked(RowName::Local) || asked(RowName::Short) {
                self.measure_short_tasks(asked(RowName::Local), asked(RowName::Short)).await?;
            }
            if asked(RowName::Long) {
                self.measure_long_tasks().await?;
            }
            if asked(RowName::Tail) && round <= self.scale.tail_rounds {
                self.measure_long_tail(round).await?;
            }
        }
        if asked(RowName::Latency) {
            self.measure_latency().await?;
        }
        if asked(RowName::Stop) {
            self.measure_early_stop().await?;
        }
        if asked(RowName::Memory) {
            self.measure_memory().await?;
        }
        Ok(())
    }
}

/// Runs a future to its end.
fn in_runtime(future: impl Future<Output = BenchResult<ExitCode>>) -> BenchResult<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}

fn exit_code(outcome: BenchResult<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}
