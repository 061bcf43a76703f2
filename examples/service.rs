//! A service that submits jobs over RabbitMQ, and is the lane's sink and one of its workers as
//! well.
//!
//! ```text
//! cargo run --example service -- amqp://guest:guest@localhost:5672 letters /tmp/letters.ledger
//! ```
//!
//! Other programs that register the kind can join as workers.

use std::{collections::BTreeMap, error::Error};

use gristmill::{Client, LedgerLocation, Registry, prelude::*};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// Counts the letters of a text, a word a task.
#[derive(Debug, Serialize, Deserialize)]
struct Letters {
    text: String,
}

impl Job for Letters {
    const KIND: &'static str = "letters";
    type Task = String;
    type Output = BTreeMap<char, u64>;
    type Report = BTreeMap<char, u64>;

    fn split(&self) -> impl Iterator<Item = Result<String, JobError>> + Send {
        self.text.split_whitespace().map(|word| Ok(word.to_lowercase()))
    }

    fn process(&self, word: String, _: &TaskContext) -> Result<Self::Output, TaskError> {
        let mut letters = BTreeMap::new();
        word.chars().for_each(|letter| *letters.entry(letter).or_default() += 1);
        Ok(letters)
    }

    fn collect(&self, report: &mut Self::Report, _: TaskIndex, letters: Self::Output) -> ControlFlow<()> {
        letters.into_iter().for_each(|(letter, count)| *report.entry(letter).or_default() += count);
        ControlFlow::Continue(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(url), Some(lane), Some(ledger)) = (args.next(), args.next(), args.next()) else {
        return Err("expected a broker's URL, a lane and a file (hint: service URL LANE LEDGER)".into());
    };
    let client = Client::connect(&url).await?.lane(lane.parse()?);
    let mut registry = Registry::default();
    registry.register::<Letters>()?;
    let sink = client.sink(registry.clone(), LedgerLocation::File(ledger.into()))?;
    let leave = CancellationToken::new();
    let sink = sink.run_until(client.transport(), leave.clone().cancelled_owned());
    let worker = client.worker(registry).run_until(client.transport(), leave.clone().cancelled_owned());
    let jobs = async {
        for text in ["Mill", "Grist to the mill", "The mills grind slowly"] {
            let job = client.submit(Letters { text: text.into() }).await?;
            let id = job.id();
            let letters = job.wait().await?.into_answer()?;
            println!("{id}: {text:?} has {} different letters, {letters:?}", letters.len());
        }
        leave.cancel(); // the roles settle what they hold
        Ok::<_, Box<dyn Error>>(())
    };
    // A role that fails ends the service: nothing would be done without it.
    tokio::try_join!(jobs, async { Ok(sink.await?) }, async { Ok(worker.await?) })?;
    client.close().await;
    Ok(())
}
