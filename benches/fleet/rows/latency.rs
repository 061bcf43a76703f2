//! A lone task on an idle fleet, submitted by a process that is connected already, against a bare message that goes to
//! another process and comes back.

use std::{sync::Arc, time::Instant};

use futures::StreamExt as _;
use gristmill_jobs::Spin;
use gristmill_producer::{News, Producer, SubmitOptions};
use gristmill_shared::erase;
use lapin::options::BasicAckOptions;

use super::baseline::{FIRST, SECOND};
use crate::{
    Bench, Outcome, bare,
    figure::{Better, Gauge, quantile},
    fleet::{Fleet, spin_answer},
};

const BARE_P50: Gauge = Gauge::shown("bare round of two hops, p50", "ms", Better::Lower);
const BARE_P99: Gauge = Gauge::shown("bare round of two hops, p99", "ms", Better::Lower);
const OURS_P50: Gauge = Gauge::shown("a lone task, submit to report, p50", "ms", Better::Lower);
const OURS_P99: Gauge = Gauge::shown("a lone task, submit to report, p99", "ms", Better::Lower);
const RATIO: Gauge =
    Gauge::judged("a lone task ÷ bare round, p50", "× time", Better::Lower, 0.25).demand(3.0);

/// Rounds of each that are not counted: what is used for the first time is made then.
const WARM_UP: usize = 5;

impl Bench {
    /// One of each in turn.
    pub(crate) async fn latency(&mut self) -> Outcome<()> {
        self.make_queues().await?;
        let rounds = self.scale.latency_rounds;
        let fleet = Fleet::start(&self.site).await?;
        let transport = gristmill::connect(self.site.url(), "bench").await?;
        let producer = Producer::new(Arc::clone(&transport), "bench");
        let options = SubmitOptions { lane: fleet.lane.clone(), ..SubmitOptions::default() };

        let (url, count) = (self.site.url(), (WARM_UP + rounds).to_string());
        let mut relay = self.bare(&["relay", url, FIRST, SECOND, &count]).await?;
        relay.go().await?;
        let connection = bare::connect(url).await?;
        let channel = bare::channel(&connection).await?;
        let mut consumer = bare::consumer(&channel, SECOND).await?;

        let (mut bare_ms, mut ours_ms) = (Vec::new(), Vec::new());
        for round in 0..WARM_UP + rounds {
            let bare = bare_round(&channel, &mut consumer, round as u64).await?;
            let ours = lone_task(&producer, options.clone()).await?;
            if round >= WARM_UP {
                bare_ms.push(bare);
                ours_ms.push(ours);
            }
        }
        relay.line().await?;
        relay.end_well().await?;
        connection.close(200, "done".into()).await?;
        transport.close().await;
        fleet.end().await?;

        let p50 = |times: &[f64]| quantile(times, 0.5);
        self.report.add(&BARE_P50, p50(&bare_ms));
        self.report.add(&BARE_P99, quantile(&bare_ms, 0.99));
        self.report.add(&OURS_P50, p50(&ours_ms));
        self.report.add(&OURS_P99, quantile(&ours_ms, 0.99));
        self.report.add(&RATIO, p50(&ours_ms) / p50(&bare_ms));
        Ok(())
    }
}

/// A message to the relay and back, in milliseconds.
async fn bare_round(channel: &lapin::Channel, back: &mut lapin::Consumer, number: u64) -> Outcome<f64> {
    let start = Instant::now();
    let body = bare::body(number);
    let sent = bare::publish_all(channel, FIRST, vec![body.clone()]);
    let came = async {
        let delivery = back.next().await.ok_or("the consumer ended")??;
        let milliseconds = start.elapsed().as_secs_f64() * 1e3;
        if delivery.data != body {
            return Err("another message came back".into());
        }
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
        Ok(milliseconds)
    };
    let (_, milliseconds) = futures::try_join!(sent, came)?;
    Ok(milliseconds)
}

/// A job of one task, from before it is opened until its answer is here, in milliseconds.
async fn lone_task(producer: &Producer, options: SubmitOptions) -> Outcome<f64> {
    let job = erase(Spin { tasks: 1, ..Spin::default() });
    let start = Instant::now();
    let (submission, mut watch) = producer.open_watched(job, options).await?;
    let answered = async {
        loop {
            if let News::Finished(finished) = watch.next().await? {
                return Ok::<_, Box<dyn std::error::Error + Send + Sync>>((finished, start.elapsed()));
            }
        }
    };
    let sent = async { Ok(submission.send().await?) };
    let (_, (finished, took)) = futures::try_join!(sent, answered)?;
    match finished.conclusion.text == spin_answer(1) {
        true => Ok(took.as_secs_f64() * 1e3),
        false => Err(format!("wrong answer: {finished:?}").into()),
    }
}
