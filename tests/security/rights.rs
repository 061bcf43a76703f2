//! Every role has a RabbitMQ user of its own, as `deploy/rabbitmq-permissions` makes them. Each can
//! do its work, and nothing else.

use std::{collections::BTreeMap, path::Path};

use gristmill_shared::{QueueRole, Shards};
use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::FieldTable,
};
use tokio::sync::OnceCell;

use crate::harness::{NODE_DIGEST, OwnBroker, Process, ScrapeTarget, Site, within};

/// The prefix of the users' names.
pub(crate) const USER_PREFIX: &str = "gristmill-";
/// A lane that exists and has no roles.
const UNUSED_LANE: &str = "wrong";
/// Number of tasks queues of both lanes.
const SHARD_COUNT: u8 = 2;

/// A broker where each role has its user, and a lane that the operator made.
pub(crate) struct RestrictedFleet {
    pub(crate) broker: OwnBroker,
    pub(crate) site: Site,
    passwords: BTreeMap<String, String>,
}

impl RestrictedFleet {
    /// Returns the one that all tests share. It ends with this process.
    pub(crate) async fn get() -> &'static Self {
        static SHARED_FLEET: OnceCell<RestrictedFleet> = OnceCell::const_new();
        SHARED_FLEET.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let broker = OwnBroker::start().await;
        let site = Site::at(broker.url());
        let lane = site.queue(QueueRole::Tasks).lane.to_string();
        let printed = broker
            .with(move |broker| {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/rabbitmq-permissions");
                let arguments = ["--lane", &lane, "--prefix", USER_PREFIX];
                let made = broker.script(&script, &arguments).unwrap();
                assert_eq!(broker.script(&script, &arguments).unwrap(), "", "again, it leaves the passwords");
                made
            })
            .await;
        let users = printed.lines().filter_map(|line| line.split_once(' '));
        let passwords = users.map(|(user, password)| (user.to_owned(), password.to_owned())).collect();
        let guarded = Self { broker, site, passwords };
        let setup = guarded
            .run(
                "operator",
                &format!(
                    "gristmill setup --lane {} --lane {UNUSED_LANE} --shards {SHARD_COUNT}",
                    guarded.lane()
                ),
            )
            .await;
        assert_eq!(setup.code, 0, "{setup:?}");
        assert!(setup.stderr.contains("tasks queues: 2"), "{setup:?}");
        guarded
    }

    pub(crate) fn url(&self, user: &str) -> String {
        let user = format!("{USER_PREFIX}{user}");
        let password = &self.passwords[&user];
        self.broker.url().replace("guest:guest", &format!("{user}:{password}"))
    }

    pub(crate) fn start_as(&self, user: &str, words: &str) -> Process {
        self.site.start_with(words, |command| command.env("GRISTMILL_BROKER", self.url(user)))
    }

    pub(crate) async fn run(&self, user: &str, words: &str) -> crate::harness::ProcessOutput {
        self.start_as(user, words).output().await
    }

    fn lane(&self) -> gristmill_shared::Lane {
        self.site.queue(QueueRole::Tasks).lane
    }

    fn queue(&self, role: QueueRole) -> String {
        self.site.queue(role).to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_works_as_its_user() {
    let fleet = RestrictedFleet::get().await;
    let sink = fleet.start_as("sink", "sink");
    let worker = fleet.start_as("worker", &format!("worker --slots 2 --shards {SHARD_COUNT}"));
    let crack = fleet
        .run("producer", &format!("producer submit crack --hash {NODE_DIGEST} --max-length 4 --wait"))
        .await;
    assert_eq!(crack.answer(), "node");
    // Tried again, failed, and sent again by the sink.
    let spin = format!(
        "producer submit spin --tasks 40 --fail-rate 0.5 --seed 5 --max-attempts 2 --shards {SHARD_COUNT} --batch 4 --wait"
    );
    let spin = fleet.run("producer", &spin).await;
    assert_eq!(spin.code, 1, "{spin:?}");
    let jobs = fleet.site.json("sink jobs --json").await;
    let failed = jobs.as_array().unwrap().iter().find(|job| job["kind"] == "spin").unwrap();
    let job = failed["job"].as_str().unwrap();
    let retried = fleet.run("sink", &format!("sink retry {job} --wait")).await;
    assert!([0, 1].contains(&retried.code), "{retried:?}");
    fleet.site.verify(job).await;
    let long = fleet.run("producer", "producer submit spin --tasks 900 --batch 1 --micros 100000").await;
    let cancelled = fleet.run("producer", &format!("producer cancel {}", long.answer())).await;
    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    // A worker's user may cancel as well: it writes to the results, and the sink writes the
    // journal.
    let long = fleet.run("producer", "producer submit spin --tasks 900 --batch 1 --micros 100000").await;
    let cancelled = fleet.run("worker", &format!("producer cancel {}", long.answer())).await;
    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    assert!(cancelled.stderr.contains("once the sink has recorded it"), "{cancelled:?}");
    let waited = fleet.run("producer", &format!("producer wait {}", long.answer())).await;
    assert!(waited.code == 1 && waited.stderr.contains("stopped early: cancelled: by hand"), "{waited:?}");
    for (name, process) in [("worker", worker), ("sink", sink)] {
        let ended = process.stop().await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let failures = |line: &&str| line.contains("a task failed"); // as they were asked to
        for line in ended.stderr.lines().filter(|line| !failures(line)) {
            for word in ["refuse", "lacks", "WARN", "ERROR"] {
                assert!(!line.contains(word), "{name}: {}", ended.stderr);
            }
        }
    }
}

/// Queues that are deleted under roles that may not declare them come back by `gristmill setup`.
#[tokio::test(flavor = "multi_thread")]
async fn setup_restores_deleted_queues() {
    let fleet = RestrictedFleet::start().await;
    let mut sink = fleet.start_as("sink", "sink --metrics 127.0.0.1:0");
    let mut worker = fleet.start_as("worker", "worker --slots 1 --metrics 127.0.0.1:0");
    let asked = [
        (ScrapeTarget::from_log(&mut sink).await, "results"),
        (ScrapeTarget::from_log(&mut worker).await, "tasks"),
    ];
    worker.wait_for("taking tasks").await;
    let crack = format!("producer submit crack --hash {NODE_DIGEST} --max-length 4 --wait");
    assert_eq!(fleet.run("producer", &crack).await.answer(), "node");

    let operator =
        Connection::connect(&fleet.url("operator"), ConnectionProperties::default()).await.unwrap();
    for role in [QueueRole::Tasks, QueueRole::Results] {
        assert!(is_allowed(&operator, &BrokerAction::Delete(fleet.queue(role))).await);
    }
    for process in [&mut sink, &mut worker] {
        process.wait_for("`gristmill setup --lane").await;
    }
    for (process, queue) in &asked {
        let why = process.wait_ready(503).await;
        let said = format!(
            "the broker does not deliver: consuming gristmill.{}.{queue} is interrupted",
            fleet.lane()
        );
        assert!(why.contains(&said) && why.contains("`gristmill setup --lane"), "{why}");
        assert!(process.metrics().await.sum("gristmill_broker_state", "state=\"interrupted\"") > 0.5);
    }
    let setup = format!("gristmill setup --lane {} --shards {SHARD_COUNT}", fleet.lane());
    assert_eq!(fleet.run("operator", &setup).await.code, 0);
    for (process, _) in &asked {
        process.wait_ready(200).await;
    }
    assert_eq!(fleet.run("producer", &crack).await.answer(), "node");
    for process in [worker, sink] {
        let ended = process.stop().await;
        println!("{}", ended.stderr);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

/// The script makes no users where it cannot give them rights.
#[tokio::test(flavor = "multi_thread")]
async fn failing_script_makes_no_users() {
    let fleet = RestrictedFleet::get().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/rabbitmq-permissions");
    let without = std::process::Command::new(&script).env("RABBITMQCTL", "no/rabbitmqctl").output().unwrap();
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    assert_eq!(without.status.code(), Some(2), "{said}");
    assert!(said.contains("there is no no/rabbitmqctl here (hint: "), "{said}");
    let arguments = ["--vhost", "nowhere", "--prefix", "new-"];
    let refused = fleet.broker.with(move |broker| broker.script(&script, &arguments).unwrap_err()).await;
    let said = format!("{refused:?}");
    assert!(said.contains("no virtual host 'nowhere', only /;") && said.contains("add_vhost"), "{said}");
    assert!(!fleet.broker.ctl("list_users").await.contains("new-"));
}

/// An operation that a user may want of the broker.
#[derive(Clone, Debug)]
enum BrokerAction {
    Publish(String),
    Consume(String),
    Declare(String),
    Delete(String),
    /// Binds a queue to an exchange, so that it gets copies.
    Bind(String, String),
    /// Removes such a binding, so that the queue gets nothing more.
    Unbind(String, String),
    DeclareExchange(String),
    DeleteExchange(String),
}

/// True if the broker allows it. On a channel of its own, since a refusal closes it.
async fn is_allowed(connection: &Connection, act: &BrokerAction) -> bool {
    let channel = connection.create_channel().await.unwrap();
    let done = within("an act", perform(&channel, act)).await;
    match done.map_err(|error| error.kind().clone()) {
        Ok(()) => true,
        Err(ErrorKind::ProtocolError(error)) if error.get_id() == 403 => false,
        Err(error) => panic!("{act:?}: {error:?}"),
    }
}

async fn perform(channel: &Channel, act: &BrokerAction) -> lapin::Result<()> {
    let table = FieldTable::default();
    match act.clone() {
        BrokerAction::Publish(exchange) => {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let options = BasicPublishOptions::default();
            let sent =
                channel.basic_publish(exchange.into(), "nowhere".into(), options, b"", Default::default());
            sent.await?.await.map(drop)
        }
        BrokerAction::Consume(queue) => {
            channel.basic_qos(1, BasicQosOptions::default()).await?;
            channel
                .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), table)
                .await
                .map(drop)
        }
        BrokerAction::Declare(queue) => {
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            channel.queue_declare(queue.into(), options, table).await.map(drop)
        }
        BrokerAction::Delete(queue) => {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.map(drop)
        }
        BrokerAction::Bind(queue, exchange) => {
            let options = QueueBindOptions::default();
            channel.queue_bind(queue.into(), exchange.into(), "#".into(), options, table).await
        }
        BrokerAction::Unbind(queue, exchange) => {
            channel.queue_unbind(queue.clone().into(), exchange.into(), queue.into(), table).await
        }
        BrokerAction::DeclareExchange(exchange) => {
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, options, table).await
        }
        BrokerAction::DeleteExchange(exchange) => {
            channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_refuses_everything_else() {
    let fleet = RestrictedFleet::get().await;
    let shards = Shards::new(SHARD_COUNT).unwrap().queues().filter(|shard| *shard != QueueRole::Tasks);
    let shards: Vec<_> = shards.collect();
    let own = |queues: &[QueueRole]| queues.iter().map(|role| fleet.queue(*role)).collect::<Vec<_>>();
    // Besides the journal, which all may read.
    let users = [
        ("producer", "work results facts events", own(&[])),
        (
            "worker",
            "work results dead events",
            own(&[&[QueueRole::Tasks, QueueRole::Requeued, QueueRole::Suspect], &shards[..]].concat()),
        ),
        ("sink", "work results facts dead events", own(&[QueueRole::Results, QueueRole::Dead])),
    ];
    let queues = || QueueRole::ALL.iter().chain(&shards).map(|role| fleet.queue(*role));
    for (user, publishes, consumes) in users {
        let url = fleet.url(user);
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        for exchange in ["work", "results", "facts", "dead", "events"] {
            let act = BrokerAction::Publish(format!("gristmill.{exchange}"));
            assert_eq!(
                is_allowed(&connection, &act).await,
                publishes.split(' ').any(|it| it == exchange),
                "{user}: {act:?}"
            );
        }
        for queue in queues() {
            let act = BrokerAction::Consume(queue.clone());
            assert_eq!(is_allowed(&connection, &act).await, consumes.contains(&queue), "{user}: {act:?}");
        }
        assert!(is_allowed(&connection, &BrokerAction::Consume("gristmill.journal".into())).await, "{user}");
        let listens = is_allowed(&connection, &BrokerAction::Declare("gristmill.events:test".into())).await;
        assert_eq!(listens, user != "worker", "{user}");
        let mut outside = vec![
            BrokerAction::Publish(String::new()), // the default exchange leads into every queue
            BrokerAction::Publish("amq.topic".into()),
            BrokerAction::Consume(format!("gristmill.{UNUSED_LANE}.tasks")),
            BrokerAction::Consume(format!("gristmill.{UNUSED_LANE}.results")),
            BrokerAction::Declare(fleet.queue(QueueRole::Tasks) + ".3"),
            BrokerAction::Declare("gristmill.other.tasks".into()),
            BrokerAction::Declare("mine".into()),
            BrokerAction::Bind(fleet.queue(QueueRole::Tasks), "gristmill.work".into()),
            BrokerAction::Bind(fleet.queue(QueueRole::Results), "gristmill.results".into()),
            BrokerAction::Bind("gristmill.journal".into(), "gristmill.events".into()),
            BrokerAction::Bind("gristmill.journal".into(), "gristmill.facts".into()),
            BrokerAction::Bind("gristmill.events:mine".into(), "gristmill.facts".into()),
            BrokerAction::Unbind("gristmill.journal".into(), "gristmill.facts".into()),
            BrokerAction::Unbind(fleet.queue(QueueRole::Results), "gristmill.results".into()),
            BrokerAction::DeclareExchange("gristmill.mine".into()),
        ];
        let exchanges = ["work", "results", "facts", "dead", "events"];
        outside
            .extend(exchanges.map(|exchange| BrokerAction::DeleteExchange(format!("gristmill.{exchange}"))));
        outside.extend(queues().chain(["gristmill.journal".into()]).map(BrokerAction::Delete));
        for act in outside {
            assert!(!is_allowed(&connection, &act).await, "{user}: {act:?}");
            println!("{user}: {act:?} is refused");
        }
    }
}

/// A producer that opens a job and may not wait for it names the job and how to go on.
#[tokio::test(flavor = "multi_thread")]
async fn job_without_wait_right_is_named() {
    let fleet = RestrictedFleet::get().await;
    // So few tasks that the producer follows the job only once it is open.
    let ended =
        fleet.run("worker", &format!("producer submit spin --tasks 10 --wait --lane {UNUSED_LANE}")).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (3, ""), "{ended:?}");
    let job = ended.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap();
    let error = ended.stderr.split("error: ").nth(1).unwrap();
    assert!(error.contains("lacks the configure right on the queue gristmill.events:"), "{ended:?}");
    for how in ["resume", "wait", "cancel"] {
        assert!(error.contains(&format!("`producer {how} {job}")), "{how}: {ended:?}");
    }
    assert!(error.contains(&format!("--lane {UNUSED_LANE}")), "{ended:?}");
}

/// A role with the wrong user names the right that the user lacks.
#[tokio::test(flavor = "multi_thread")]
async fn error_names_the_missing_right() {
    let fleet = RestrictedFleet::get().await;
    let submit = format!("producer submit crack --hash {NODE_DIGEST} --max-length 4 --wait");
    // The right that each user lacks first. A sink's user may do all that a producer does
    // (SECURITY.md).
    for (user, words, right, thing) in [
        ("producer", "worker", "read", "gristmill.wrong."),
        ("sink", "worker", "read", "gristmill.wrong."),
        ("producer", "sink", "read", "gristmill.wrong.results"),
        ("worker", "sink", "write", "gristmill.facts"),
        ("worker", &submit, "configure", "gristmill.events:"),
        ("worker", "worker --lane missing", "configure", "is missing"),
        ("worker", "worker --lane wrong --shards 3", "configure", "gristmill.wrong.tasks.3 is missing"),
        // Also where everything exists, although nothing would be compared or bound.
        ("producer", "gristmill setup --lane missing", "configure", "the exchange gristmill.work"),
        ("worker", "gristmill setup --lane wrong", "configure", "the exchange gristmill.work"),
        ("sink", "gristmill setup --lane wrong --shards 3", "configure", "the exchange gristmill.work"),
    ] {
        let lane = if words.contains("--lane") { "" } else { "--lane wrong" };
        let words = format!("{words} {lane}");
        let ended = fleet.run(user, &words).await;
        assert_eq!(ended.code, 3, "{user}: {words}: {ended:?}");
        let errors: Vec<_> = ended.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        let [error] = errors[..] else { panic!("{user}: {words}: {}", ended.stderr) };
        let lacks = format!("the user {USER_PREFIX}{user} lacks the {right} right on the ");
        assert!(error.contains(&lacks) && error.contains(thing), "{user}: {words}: {error}");
        assert!(ended.stderr.contains("(hint: "), "{}", ended.stderr);
        println!("as {user}, {words}: {}", ended.stderr);
        if thing.ends_with("is missing") {
            let (_, lane) = words.split_once("--lane ").unwrap();
            let lane = lane.split(' ').next().unwrap();
            assert!(error.contains(&format!("`gristmill setup --lane {lane}`")), "{error}");
        }
    }
}
