//! Looks a broker over: all that can be seen over AMQP, without harm to whoever works there.
//!
//! Nothing is made, bound, consumed or deleted that others have. Whether we may publish is tried with messages to nobody,
//! whether we may consume or declare with requests that are refused for another reason if they are not for this one.

mod finding;
mod handshake;
mod presence;
mod role;
mod inventory;
mod probe;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use gristmill_shared::{Lane, TransportError};
use lapin::options::BasicQosOptions;
use tokio::time::Instant;

pub use finding::{Finding, Verdict};
pub use role::Part;

use self::{
    handshake::Greeting,
    presence::Hearing,
    role::Need,
    inventory::Standing,
    probe::{Trial, Tried},
};
use crate::{
    MAX_MESSAGE,
    config::AmqpConfig,
    failure::Wish,
    connection::generation::Generation,
    topology::{EVENTS, JOURNAL},
    transport::first_generation,
    topology::declare_connection::Visit,
};

/// How long a greeting may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the way to the broker and back is measured; the shortest counts.
const ROUND_TRIPS: usize = 5;
/// A round trip beyond which small batches wait more than they work.
const SLOW_ROUND_TRIP: Duration = Duration::from_millis(50);
/// How many channels a process of ours may have on one connection; they are about ten.
const CHANNELS_NEEDED: u16 = 32;
/// The largest message that comes of the default bounds: a result, 256 KiB and an output of 1 MiB.
const MESSAGE_NEEDED: usize = 2 << 20;

/// Looks over the broker, and a lane on it, as the user of `config`. If `part` is given, it must have that part's rights,
/// else those of any. Takes about 4 s, and at most a minute or so where the broker gives no answers.
///
/// A broker that cannot be reached is a finding too.
pub async fn examine(config: &AmqpConfig, lane: &Lane, part: Option<Part>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let greeting = Greeting::hear(config, GREETING_TIMEOUT).await;
    let generation = match first_generation(config).await {
        Ok(generation) => Arc::new(generation),
        Err(error) => {
            findings.extend(greeting.ok().map(|greeting| version(&greeting)));
            let hint = match &error {
                TransportError::Denied { reason, .. } if !reason.contains("(hint: ") => {
                    Some("check the user and the password")
                }
                TransportError::Unreachable { .. } => {
                    Some("is a RabbitMQ running there? the URL is amqp://USER:PASSWORD@HOST:PORT/VHOST")
                }
                _ => None, // they say it themselves
            };
            let finding = Finding::problem("connection", &error);
            findings.push(match hint {
                Some(hint) => finding.hint(hint),
                None => finding,
            });
            return findings;
        }
    };
    findings.push(match greeting {
        Ok(greeting) => version(&greeting),
        Err(why) => Finding::unseen("version", format_args!("the broker was not understood: {why}")),
    });
    let examination = Examination { config, lane, part, generation, findings };
    examination.run().await
}

struct Examination<'a> {
    config: &'a AmqpConfig,
    lane: &'a Lane,
    part: Option<Part>,
    generation: Arc<Generation>,
    findings: Vec<Finding>,
}

impl Examination<'_> {
    async fn run(mut self) -> Vec<Finding> {
        if let Err(error) = self.look().await {
            self.findings.push(Finding::problem("connection", error));
        }
        self.generation.close().await; // with a goodbye, else the broker's log has a line
        self.findings
    }

    async fn look(&mut self) -> Result<(), TransportError> {
        let connection = self.connection().await?;
        self.findings.push(connection);
        let declares = Arc::new(AtomicBool::new(true));
        let mut visit = Visit::begin(&self.generation, self.config, &declares).await?;
        let mut trial = Trial::new(Arc::clone(&self.generation));
        let alarm = trial.alarm().await;
        self.findings.push(alarm);
        let hearing = Hearing::begin(Arc::clone(&self.generation), self.lane).await;
        let standing = Standing::look(&mut visit, self.lane).await?;
        let configure = trial.declare(&mut visit, self.lane).await?;
        self.findings.extend(standing.findings(&configure, self.config.vhost()));
        self.findings.extend(standing.compare(&mut visit, &configure).await?);
        let rights = self.rights(&mut visit, &mut trial, &standing, &hearing, configure).await?;
        self.findings.push(rights);
        let size = trial.size(MAX_MESSAGE, MESSAGE_NEEDED).await;
        self.findings.push(size);
        let heard = hearing.finish().await;
        // Once more, since somebody who was just starting has had the time by now.
        let standing = Standing::look(&mut visit, self.lane).await?;
        self.findings.extend(heard.findings(&standing));
        self.findings.push(
            Finding::unseen("consumer_timeout", "it cannot be seen over AMQP; 30 min unless set otherwise").hint(
                "`rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'` tells it, in ms; it must be at \
                 least twice what a task may take",
            ),
        );
        self.findings.push(
            Finding::unseen("policies", "they cannot be seen over AMQP").hint(
                "`rabbitmqctl list_policies` and `list_operator_policies` tell them; none should reach gristmill.*: \
                 one that sets a length or an age may drop tasks",
            ),
        );
        visit.end().await;
        Ok(())
    }

    async fn connection(&self) -> Result<Finding, TransportError> {
        let channel = self.generation.channel().await?;
        let mut shortest = Duration::MAX;
        for _ in 0..ROUND_TRIPS {
            let start = Instant::now();
            let asked = channel.basic_qos(1, BasicQosOptions::default());
            self.generation.ask(Wish::Free, "a prefetch", asked).await?;
            shortest = shortest.min(start.elapsed());
        }
        let (heartbeat, frame_max, channel_max) = self.generation.negotiated();
        let found = format!(
            "{}: round trip {:.1} ms, heartbeat {heartbeat} s, frames of {frame_max} bytes, {channel_max} channels",
            self.config,
            shortest.as_secs_f64() * 1e3
        );
        Ok(if heartbeat == 0 {
            Finding::warning("connection", found)
                .hint("without heartbeats a peer that is gone is noticed late; see `heartbeat` on the broker")
        } else if channel_max != 0 && channel_max < CHANNELS_NEEDED {
            Finding::warning("connection", found).hint("set channel_max on the broker to 32 or more")
        } else if shortest > SLOW_ROUND_TRIP {
            Finding::warning("connection", found)
                .hint("the broker is far away or busy; send larger batches (--batch) if tasks are short")
        } else {
            Finding::ok("connection", found)
        })
    }

    async fn rights(
        &self,
        visit: &mut Visit,
        trial: &mut Trial,
        standing: &Standing,
        hearing: &Hearing,
        configure: Tried,
    ) -> Result<Finding, TransportError> {
        let (mut fits, mut lacking, mut untried) = (Vec::new(), Vec::new(), Vec::new());
        let parts = self.part.map_or(Part::ALL.to_vec(), |part| vec![part]);
        for part in parts {
            let mut lacks = Vec::new();
            for need in part.needs(self.lane, standing.shards()) {
                let tried = match &need {
                    Need::DeclareAll => configure.clone(),
                    // A right that is lacking shows first, also if there is nothing to listen to.
                    Need::Listen => match hearing.tried() {
                        Tried::Untried(_) if !standing.has(EVENTS) => Tried::missing(),
                        tried => tried,
                    },
                    Need::Bind(exchange) if standing.has(exchange) => {
                        trial.bind(visit, self.lane, exchange).await?
                    }
                    Need::Publish(exchange) if standing.has(exchange) => trial.publish(exchange).await,
                    Need::Consume(queue) if standing.has(&queue.to_string()) => {
                        trial.consume(visit, &queue.to_string()).await?
                    }
                    Need::ReadJournal if standing.has(JOURNAL) => trial.consume(visit, JOURNAL).await?,
                    Need::Publish(_) | Need::Consume(_) | Need::ReadJournal | Need::Bind(_) => {
                        Tried::missing()
                    }
                };
                match tried {
                    Tried::May => {}
                    Tried::MayNot(why) => lacks.push(why),
                    Tried::Untried(why) if untried.contains(&why) => {}
                    Tried::Untried(why) => untried.push(why),
                }
            }
            if lacks.is_empty() { fits.push(part) } else { lacking.push((part, lacks)) }
        }
        Ok(finding::rights(self.part, &fits, lacking, &untried))
    }
}

fn version(greeting: &Greeting) -> Finding {
    let Greeting { product, version } = greeting;
    let found = format!("{product} {version}");
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let number = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if product != "RabbitMQ" {
        Finding::warning("version", found).hint("tested with RabbitMQ 3.10 to 4.x alone")
    } else if number < (3, 10) {
        Finding::problem("version", found)
            .hint("RabbitMQ 3.10 or later is needed, for its streams and quorum queues")
    } else if number >= (5, 0) {
        Finding::warning("version", found).hint("tested with RabbitMQ 3.10 to 4.x")
    } else {
        Finding::ok("version", found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_decides_what_is_said_of_it() {
        let judged = |product: &str, number: &str| {
            version(&Greeting { product: product.into(), version: number.into() }).verdict
        };
        assert_eq!(judged("RabbitMQ", "3.9.29"), Verdict::Problem);
        assert_eq!(judged("RabbitMQ", "3.10.8"), Verdict::Ok);
        assert_eq!(judged("RabbitMQ", "4.0.5"), Verdict::Ok);
        assert_eq!(judged("RabbitMQ", "5.0.0"), Verdict::Warning);
        assert_eq!(judged("LavinMQ", "2.9.0"), Verdict::Warning);
    }
}
