//! Every role has a RabbitMQ user of its own, as `deploy/rabbitmq-permissions` makes them: each can do its work, and
//! nothing else.

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

use crate::harness::{NODE, OwnBroker, Process, Scraped, Site, within};

/// What the users' names begin with.
pub(crate) const PREFIX: &str = "gristmill-";
/// A lane that is there, and where nobody works.
const WRONG: &str = "wrong";
/// How many tasks queues both lanes have.
const SHARDS: u8 = 2;

/// A broker where each role has its user, and a lane that the operator made.
pub(crate) struct Guarded {
    pub(crate) broker: OwnBroker,
    pub(crate) site: Site,
    passwords: BTreeMap<String, String>,
}

impl Guarded {
    /// The one that all tests share. It ends with this process.
    pub(crate) async fn get() -> &'static Self {
        static GUARDED: OnceCell<Guarded> = OnceCell::const_new();
        GUARDED.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let broker = OwnBroker::start().await;
        let site = Site::at(broker.url());
        let lane = site.queue(QueueRole::Tasks).lane.to_string();
        let printed = broker
            .with(move |broker| {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/rabbitmq-permissions");
                let arguments = ["--lane", &lane, "--prefix", PREFIX];
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
                &format!("gristmill setup --lane {} --lane {WRONG} --shards {SHARDS}", guarded.lane()),
            )
            .await;
        assert_eq!(setup.code, 0, "{setup:?}");
        assert!(setup.stderr.contains("tasks queues: 2"), "{setup:?}");
        guarded
    }

    pub(crate) fn url(&self, user: &str) -> String {
        let user = format!("{PREFIX}{user}");
        let password = &self.passwords[&user];
        self.broker.url().replace("guest:guest", &format!("{user}:{password}"))
    }

    pub(crate) fn start_as(&self, user: &str, words: &str) -> Process {
        self.site.start_with(words, |command| command.env("GRISTMILL_BROKER", self.url(user)))
    }

    pub(crate) async fn run(&self, user: &str, words: &str) -> crate::harness::Ended {
        self.start_as(user, words).end().await
    }

    fn lane(&self) -> gristmill_shared::Lane {
        self.site.queue(QueueRole::Tasks).lane
    }

    fn queue(&self, role: QueueRole) -> String {
        self.site.queue(role).to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_works_with_its_own_user() {
    let fleet = Guarded::get().await;
    let sink = fleet.start_as("sink", "sink");
    let worker = fleet.start_as("worker", &format!("worker --slots 2 --shards {SHARDS}"));
    let crack =
        fleet.run("producer", &format!("producer submit crack --hash {NODE} --max-length 4 --wait")).await;
    assert_eq!(crack.answer(), "node");
    // Tried again, failed, and sent again by the sink.
    let spin = format!(
        "producer submit spin --tasks 40 --fail-rate 0.5 --seed 5 --max-attempts 2 --shards {SHARDS} --batch 4 --wait"
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
    // A worker's user may write results, and so the same, but not the journal: the sink does that.
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_under_those_who_may_not_make_it_comes_back_by_setup() {
    let fleet = Guarded::start().await;
    let mut sink = fleet.start_as("sink", "sink --metrics 127.0.0.1:0");
    let mut worker = fleet.start_as("worker", "worker --slots 1 --metrics 127.0.0.1:0");
    let asked = [(Scraped::of(&mut sink).await, "results"), (Scraped::of(&mut worker).await, "tasks")];
    worker.says("taking tasks").await;
    let crack = format!("producer submit crack --hash {NODE} --max-length 4 --wait");
    assert_eq!(fleet.run("producer", &crack).await.answer(), "node");

    let operator =
        Connection::connect(&fleet.url("operator"), ConnectionProperties::default()).await.unwrap();
    for role in [QueueRole::Tasks, QueueRole::Results] {
        assert!(may(&operator, &Act::Delete(fleet.queue(role))).await);
    }
    for process in [&mut sink, &mut worker] {
        process.says("`gristmill setup --lane").await;
    }
    for (process, queue) in &asked {
        let why = process.ready(503).await;
        let said = format!(
            "the broker does not deliver: consuming gristmill.{}.{queue} is interrupted",
            fleet.lane()
        );
        assert!(why.contains(&said) && why.contains("`gristmill setup --lane"), "{why}");
        assert!(process.metrics().await.sum("gristmill_broker_state", "state=\"interrupted\"") > 0.5);
    }
    let setup = format!("gristmill setup --lane {} --shards {SHARDS}", fleet.lane());
    assert_eq!(fleet.run("operator", &setup).await.code, 0);
    for (process, _) in &asked {
        process.ready(200).await;
    }
    assert_eq!(fleet.run("producer", &crack).await.answer(), "node");
    for process in [worker, sink] {
        let ended = process.stop().await;
        println!("{}", ended.stderr);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_that_makes_users_makes_none_where_it_cannot_give_them_rights() {
    let fleet = Guarded::get().await;
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

/// What somebody may want of the broker.
#[derive(Clone, Debug)]
enum Act {
    Publish(String),
    Consume(String),
    Declare(String),
    Delete(String),
    /// A queue to an exchange, so that it gets copies.
    Bind(String, String),
    /// The same, so that it gets nothing more.
    Unbind(String, String),
    DeclareExchange(String),
    DeleteExchange(String),
}

/// Whether the broker lets it happen; on a channel of its own, since a refusal closes it.
async fn may(connection: &Connection, act: &Act) -> bool {
    let channel = connection.create_channel().await.unwrap();
    let done = within("an act", do_it(&channel, act)).await;
    match done.map_err(|error| error.kind().clone()) {
        Ok(()) => true,
        Err(ErrorKind::ProtocolError(error)) if error.get_id() == 403 => false,
        Err(error) => panic!("{act:?}: {error:?}"),
    }
}

async fn do_it(channel: &Channel, act: &Act) -> lapin::Result<()> {
    let table = FieldTable::default();
    match act.clone() {
        Act::Publish(exchange) => {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let options = BasicPublishOptions::default();
            let sent =
                channel.basic_publish(exchange.into(), "nowhere".into(), options, b"", Default::default());
            sent.await?.await.map(drop)
        }
        Act::Consume(queue) => {
            channel.basic_qos(1, BasicQosOptions::default()).await?;
            channel
                .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), table)
                .await
                .map(drop)
        }
        Act::Declare(queue) => {
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            channel.queue_declare(queue.into(), options, table).await.map(drop)
        }
        Act::Delete(queue) => {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.map(drop)
        }
        Act::Bind(queue, exchange) => {
            let options = QueueBindOptions::default();
            channel.queue_bind(queue.into(), exchange.into(), "#".into(), options, table).await
        }
        Act::Unbind(queue, exchange) => {
            channel.queue_unbind(queue.clone().into(), exchange.into(), queue.into(), table).await
        }
        Act::DeclareExchange(exchange) => {
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, options, table).await
        }
        Act::DeleteExchange(exchange) => {
            channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_else_is_refused_by_the_broker() {
    let fleet = Guarded::get().await;
    let shards = Shards::new(SHARDS).unwrap().queues().filter(|shard| *shard != QueueRole::Tasks);
    let shards: Vec<_> = shards.collect();
    let own = |queues: &[QueueRole]| queues.iter().map(|role| fleet.queue(*role)).collect::<Vec<_>>();
    // Besides the journal, which all may read.
    let users = [
        ("producer", "work results facts events", own(&[])),
        (
            "worker",
            "work results dead events",
            own(&[&[QueueRole::Tasks, QueueRole::Again, QueueRole::Suspect], &shards[..]].concat()),
        ),
        ("sink", "work results facts dead events", own(&[QueueRole::Results, QueueRole::Dead])),
    ];
    let queues = || QueueRole::ALL.iter().chain(&shards).map(|role| fleet.queue(*role));
    for (user, publishes, consumes) in users {
        let url = fleet.url(user);
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        for exchange in ["work", "results", "facts", "dead", "events"] {
            let act = Act::Publish(format!("gristmill.{exchange}"));
            assert_eq!(
                may(&connection, &act).await,
                publishes.split(' ').any(|it| it == exchange),
                "{user}: {act:?}"
            );
        }
        for queue in queues() {
            let act = Act::Consume(queue.clone());
            assert_eq!(may(&connection, &act).await, consumes.contains(&queue), "{user}: {act:?}");
        }
        assert!(may(&connection, &Act::Consume("gristmill.journal".into())).await, "{user}");
        let listens = may(&connection, &Act::Declare("gristmill.events:test".into())).await;
        assert_eq!(listens, user != "worker", "{user}");
        let mut outside = vec![
            Act::Publish(String::new()), // the default exchange leads into every queue
            Act::Publish("amq.topic".into()),
            Act::Consume(format!("gristmill.{WRONG}.tasks")),
            Act::Consume(format!("gristmill.{WRONG}.results")),
            Act::Declare(fleet.queue(QueueRole::Tasks) + ".3"),
            Act::Declare("gristmill.other.tasks".into()),
            Act::Declare("mine".into()),
            Act::Bind(fleet.queue(QueueRole::Tasks), "gristmill.work".into()),
            Act::Bind(fleet.queue(QueueRole::Results), "gristmill.results".into()),
            Act::Bind("gristmill.journal".into(), "gristmill.events".into()),
            Act::Bind("gristmill.journal".into(), "gristmill.facts".into()),
            Act::Bind("gristmill.events:mine".into(), "gristmill.facts".into()),
            Act::Unbind("gristmill.journal".into(), "gristmill.facts".into()),
            Act::Unbind(fleet.queue(QueueRole::Results), "gristmill.results".into()),
            Act::DeclareExchange("gristmill.mine".into()),
        ];
        let exchanges = ["work", "results", "facts", "dead", "events"];
        outside.extend(exchanges.map(|exchange| Act::DeleteExchange(format!("gristmill.{exchange}"))));
        outside.extend(queues().chain(["gristmill.journal".into()]).map(Act::Delete));
        for act in outside {
            assert!(!may(&connection, &act).await, "{user}: {act:?}");
            println!("{user}: {act:?} is refused");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_user_may_not_wait_for_it_is_named() {
    let fleet = Guarded::get().await;
    // So few that nobody listens before the job is open.
    let ended = fleet.run("worker", &format!("producer submit spin --tasks 10 --wait --lane {WRONG}")).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (3, ""), "{ended:?}");
    let job = ended.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap();
    let error = ended.stderr.split("error: ").nth(1).unwrap();
    assert!(error.contains("lacks the configure right on the queue gristmill.events:"), "{ended:?}");
    for how in ["resume", "wait", "cancel"] {
        assert!(error.contains(&format!("`producer {how} {job}")), "{how}: {ended:?}");
    }
    assert!(error.contains(&format!("--lane {WRONG}")), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_with_a_wrong_user_is_told_what_that_lacks() {
    let fleet = Guarded::get().await;
    let submit = format!("producer submit crack --hash {NODE} --max-length 4 --wait");
    // What a user lacks first for that; a sink's may do all that a producer does (SECURITY.md).
    for (user, words, right, thing) in [
        ("producer", "worker", "read", "gristmill.wrong."),
        ("sink", "worker", "read", "gristmill.wrong."),
        ("producer", "sink", "read", "gristmill.wrong.results"),
        ("worker", "sink", "write", "gristmill.facts"),
        ("worker", &submit, "configure", "gristmill.events:"),
        ("worker", "worker --lane missing", "configure", "is missing"),
        ("worker", "worker --lane wrong --shards 3", "configure", "gristmill.wrong.tasks.3 is missing"),
        // Also where all is there: nothing would be compared or bound.
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
        let lacks = format!("the user {PREFIX}{user} lacks the {right} right on the ");
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
