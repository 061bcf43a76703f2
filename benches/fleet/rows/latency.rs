//! Latency: a lone task on an idle fleet, submitted by a process that is connected already, against
//! a bare message to another process and back.

use std::{sync::Arc, time::Instant};

use futures::StreamExt as _;
use gristmill_jobs::Spin;
use gristmill_producer::{JobUpdate, Producer, SubmitOptions};
use gristmill_shared::erase;
use lapin::options::BasicAckOptions;

use super::baseline::{FIRST_QUEUE, SECOND_QUEUE};
use crate::{
    Bench, BenchResult, bare,
    figure::{Better, FigureSpec, quantile},
    fleet::{BenchFleet, expected_spin_answer},
};

const BARE_P50: FigureSpec = FigureSpec::shown("bare round of two hops, p50", "ms", Better::Lower);
const BARE_P99: FigureSpec = FigureSpec::shown("bare round of two hops, p99", "ms", Better::Lower);
const OURS_P50: FigureSpec = FigureSpec::shown("a lone task, submit to report, p50", "ms", Better::Lower);
const OURS_P99: FigureSpec = FigureSpec::shown("a lone task, submit to report, p99", "ms", Better::Lower);
const LATENCY_RATIO: FigureSpec =
    FigureSpec::judged("a lone task ÷ bare round, p50", "× time", Better::Lower, 0.25).demand(3.0);

/// The first rounds of each, which are not counted, since resources are created on their first use.
const WARM_UP_ROUNDS: usize = 5;

impl Bench {
    /// Measures a bare message and a lone task in turn.
    pub(crate) async fn measure_latency(&mut self) -> BenchResult<()> {
        self.create_queues().await?;
        let rounds = self.scale.latency_rounds;
        let fleet = BenchFleet::start(&self.env).await?;
        let transport = gristmill::connect(self.env.url(), "bench").await?;
        let producer = Producer::new(Arc::clone(&transport), "bench");
        let options = SubmitOptions { lane: fleet.lane.clone(), ..SubmitOptions::default() };

        let (url, count) = (self.env.url(), (WARM_UP_ROUNDS + rounds).to_string());
        let mut relay = self.start_bare(&["relay", url, FIRST_QUEUE, SECOND_QUEUE, &count]).await?;
        relay.send_go().await?;
        let connection = bare::connect(url).await?;
        let channel = bare::channel(&connection).await?;
        let mut consumer = bare::consumer(&channel, SECOND_QUEUE).await?;

        let (mut bare_ms, mut ours_ms) = (Vec::new(), Vec::new());
        for round in 0..WARM_UP_ROUNDS + rounds {
            let bare = bare_round(&channel, &mut consumer, round as u64).await?;
            let ours = lone_task(&producer, options.clone()).await?;
            if round >= WARM_UP_ROUNDS {
                bare_ms.push(bare);
                ours_ms.push(ours);
            }
        }
        relay.next_line().await?;
        relay.wait_success().await?;
        connection.close(200, "done".into()).await?;
        transport.close().await;
        fleet.shut_down().await?;

        let p50 = |times: &[f64]| quantile(times, 0.5);
        self.report.add(&BARE_P50, p50(&bare_ms));
        self.report.add(&BARE_P99, quantile(&bare_ms, 0.99));
        self.report.add(&OURS_P50, p50(&ours_ms));
        self.report.add(&OURS_P99, quantile(&ours_ms, 0.99));
        self.report.add(&LATENCY_RATIO, p50(&ours_ms) / p50(&bare_ms));
        Ok(())
    }
}

/// Sends a message to the relay and back. Returns the time in milliseconds.
async fn bare_round(channel: &lapin::Channel, back: &mut lapin::Consumer, number: u64) -> BenchResult<f64> {
    let start = Instant::now();
    let body = bare::body(number);
    let sent = bare::publish_all(channel, FIRST_QUEUE, vec![body.clone()]);
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

/// Runs a job of one task. Returns the time from before it is opened until its answer, in
/// milliseconds.
async fn lone_task(producer: &Producer, options: SubmitOptions) -> BenchResult<f64> {
    let job = erase(Spin { tasks: 1, ..Spin::default() });
    let start = Instant::now();
    let (submission, mut watch) = producer.open_watched(job, options).await?;
    let answered = async {
        loop {
            if let JobUpdate::Finished(finished) = watch.next().await? {
                return Ok::<_, Box<dyn std::error::Error + Send + Sync>>((finished, start.elapsed()));
            }
        }
    };
    let sent = async { Ok(submission.send().await?) };
    let (_, (finished, took)) = futures::try_join!(sent, answered)?;
    match finished.conclusion.text == expected_spin_answer(1) {
        true => Ok(took.as_secs_f64() * 1e3),
        false => Err(format!("wrong answer: {finished:?}").into()),
    }
}
