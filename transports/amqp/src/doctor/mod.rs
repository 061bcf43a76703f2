//! Checks of a broker: all that is visible over AMQP, without harm to its users.
//!
//! The checks create, bind, consume and delete nothing that others use. Publishing is tested with
//! unroutable messages; consuming and declaring with requests that the broker refuses for another
//! reason after it has checked the permissions.

mod handshake;
mod inventory;
mod presence;
mod probe;
mod required_right;
mod rights_finding;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use gristmill_shared::{Finding, FleetRole, Lane, TransportError};
use lapin::options::BasicQosOptions;
use tokio::time::Instant;

use self::{
    handshake::ServerIdentity,
    inventory::BrokerInventory,
    presence::PresenceListener,
    probe::{ProbeOutcome, RightsProbe},
    required_right::RequiredRight,
    rights_finding::rights_finding,
};
use crate::{
    MAX_MESSAGE,
    config::AmqpConfig,
    connection::Generation,
    failure::Operation,
    topology::{DeclareSession, EVENTS_EXCHANGE, JOURNAL_QUEUE},
    transport::connect_first_generation,
};

/// Time limit for the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of measured round trips; the shortest counts.
const ROUND_TRIPS: usize = 5;
/// Round-trip time above which small batches wait longer than they run.
const SLOW_ROUND_TRIP: Duration = Duration::from_millis(50);
/// Number of channels that a process may need on one connection; about ten are in use.
const CHANNELS_NEEDED: u16 = 32;
/// The largest message under the default limits: a result of 256 KiB and an output of 1 MiB.
const MESSAGE_NEEDED: usize = 2 << 20;

/// Checks the broker, and a lane on it, as the user of `config`. If `part` is given, the user must
/// have the permissions of that role, otherwise those of any. Takes about 4 s, and at most about a
/// minute if the broker does not answer.
///
/// A broker that cannot be reached is a finding too.
pub async fn diagnose(config: &AmqpConfig, lane: &Lane, part: Option<FleetRole>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let server = ServerIdentity::fetch(config, HANDSHAKE_TIMEOUT).await;
    let generation = match connect_first_generation(config).await {
        Ok(generation) => Arc::new(generation),
        Err(error) => {
            findings.extend(server.ok().map(|server| version(&server)));
            let hint = match &error {
                TransportError::AuthenticationFailed { reason, .. } if !reason.contains("(hint: ") => {
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
    findings.push(match server {
        Ok(server) => version(&server),
        Err(why) => Finding::unseen("version", format_args!("the broker's version is unknown: {why}")),
    });
    let diagnosis = Diagnosis { config, lane, part, generation, findings };
    diagnosis.run().await
}

struct Diagnosis<'a> {
    config: &'a AmqpConfig,
    lane: &'a Lane,
    part: Option<FleetRole>,
    generation: Arc<Generation>,
    findings: Vec<Finding>,
}

impl Diagnosis<'_> {
    async fn run(mut self) -> Vec<Finding> {
        if let Err(error) = self.run_checks().await {
            self.findings.push(Finding::problem("connection", error));
        }
        self.generation.close().await; // in order, otherwise the broker logs a lost connection
        self.findings
    }

    async fn run_checks(&mut self) -> Result<(), TransportError> {
        let connection = self.connection().await?;
        self.findings.push(connection);
        let may_declare = Arc::new(AtomicBool::new(true));
        let mut session = DeclareSession::open(&self.generation, self.config, &may_declare).await?;
        let mut probe = RightsProbe::new(Arc::clone(&self.generation));
        let alarm = probe.check_alarm().await;
        self.findings.push(alarm);
        let listener = PresenceListener::start(Arc::clone(&self.generation), self.lane).await;
        let inventory = BrokerInventory::collect(&mut session, self.lane).await?;
        let configure = probe.try_declare(&mut session, self.lane).await?;
        self.findings.extend(inventory.findings(&configure, self.config.vhost()));
        self.findings.extend(inventory.compare(&mut session, &configure).await?);
        let rights = self.rights(&mut session, &mut probe, &inventory, &listener, configure).await?;
        self.findings.push(rights);
        let size = probe.check_message_size(MAX_MESSAGE, MESSAGE_NEEDED).await;
        self.findings.push(size);
        let presence = listener.finish().await;
        // Collected again, because a process that was just starting has had time to subscribe.
        let inventory = BrokerInventory::collect(&mut session, self.lane).await?;
        self.findings.extend(presence.findings(&inventory));
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
        session.close().await;
        Ok(())
    }

    async fn connection(&self) -> Result<Finding, TransportError> {
        let channel = self.generation.open_channel().await?;
        let mut shortest = Duration::MAX;
        for _ in 0..ROUND_TRIPS {
            let start = Instant::now();
            let asked = channel.basic_qos(1, BasicQosOptions::default());
            self.generation.request(Operation::Unrestricted, "a prefetch", asked).await?;
            shortest = shortest.min(start.elapsed());
        }
        let (heartbeat, frame_max, channel_max) = self.generation.negotiated_limits();
        let found = format!(
            "{}: round trip {:.1} ms, heartbeat {heartbeat} s, frames of {frame_max} bytes, {channel_max} channels",
            self.config,
            shortest.as_secs_f64() * 1e3
        );
        Ok(if heartbeat == 0 {
            Finding::warning("connection", found)
                .hint("without heartbeats a lost peer is noticed late; see `heartbeat` on the broker")
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
        session: &mut DeclareSession,
        probe: &mut RightsProbe,
        inventory: &BrokerInventory,
        listener: &PresenceListener,
        configure: ProbeOutcome,
    ) -> Result<Finding, TransportError> {
        let (mut fits, mut lacking, mut untested) = (Vec::new(), Vec::new(), Vec::new());
        let parts = self.part.map_or(FleetRole::ALL.to_vec(), |part| vec![part]);
        for part in parts {
            let mut lacks = Vec::new();
            for need in RequiredRight::of_role(part, self.lane, inventory.shards()) {
                let outcome = match &need {
                    RequiredRight::DeclareAll => configure.clone(),
                    // A missing permission takes precedence over a missing exchange.
                    RequiredRight::Listen => match listener.outcome() {
                        ProbeOutcome::Untested(_) if !inventory.has(EVENTS_EXCHANGE) => {
                            ProbeOutcome::missing()
                        }
                        outcome => outcome,
                    },
                    RequiredRight::Bind(exchange) if inventory.has(exchange) => {
                        probe.try_bind(session, self.lane, exchange).await?
                    }
                    RequiredRight::Publish(exchange) if inventory.has(exchange) => {
                        probe.try_publish(exchange).await
                    }
                    RequiredRight::Consume(queue) if inventory.has(&queue.to_string()) => {
                        probe.try_consume(session, &queue.to_string()).await?
                    }
                    RequiredRight::ReadJournal if inventory.has(JOURNAL_QUEUE) => {
                        probe.try_consume(session, JOURNAL_QUEUE).await?
                    }
                    RequiredRight::Publish(_)
                    | RequiredRight::Consume(_)
                    | RequiredRight::ReadJournal
                    | RequiredRight::Bind(_) => ProbeOutcome::missing(),
                };
                match outcome {
                    ProbeOutcome::Allowed => {}
                    ProbeOutcome::Denied(why) => lacks.push(why),
                    ProbeOutcome::Untested(why) if untested.contains(&why) => {}
                    ProbeOutcome::Untested(why) => untested.push(why),
                }
            }
            if lacks.is_empty() { fits.push(part) } else { lacking.push((part, lacks)) }
        }
        Ok(rights_finding(self.part, &fits, lacking, &untested))
    }
}

fn version(server: &ServerIdentity) -> Finding {
    let ServerIdentity { product, version } = server;
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
    use gristmill_shared::Severity;

    use super::*;

    #[test]
    fn version_decides_severity() {
        let judged = |product: &str, number: &str| {
            version(&ServerIdentity { product: product.into(), version: number.into() }).verdict
        };
        assert_eq!(judged("RabbitMQ", "3.9.29"), Severity::Problem);
        assert_eq!(judged("RabbitMQ", "3.10.8"), Severity::Ok);
        assert_eq!(judged("RabbitMQ", "4.0.5"), Severity::Ok);
        assert_eq!(judged("RabbitMQ", "5.0.0"), Severity::Warning);
        assert_eq!(judged("LavinMQ", "2.9.0"), Severity::Warning);
    }
}
