//! Publishing: requests from everywhere, and a few channels that each send one wave after the other.
//!
//! Facts have a channel of their own: a journal that gives no answers holds up nobody else.

use std::{mem, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::join;
use gristmill_shared::{Address, Outgoing, Published, Publisher};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::sleep,
};

use crate::{
    MAX_MESSAGE,
    connection::channel::OwnChannel,
    publish::frame::Letter,
    connection::handle::{Line, Link},
    connection::backoff::Pauses,
    publish::confirm_batch::{self, SILENCE, SILENCE_MAX, Sent},
};

/// How many channels publish what is no fact. While one waits for its confirms, the next one sends.
const CHANNELS: usize = 2;
/// How many channels publish facts, which are few.
const JOURNAL_CHANNELS: usize = 1;
/// How many letters a channel may have unconfirmed. All channels together: 1,500.
const WAVE_LETTERS: usize = 500;
/// How many bytes of bodies a channel may have unconfirmed. All channels together: 48 MiB.
const WAVE_BYTES: usize = 16 << 20;
/// A wave of so many letters shows that many come. The next one then lingers for company: a message in a small wave costs
/// everybody more, the broker above all.
const MANY: usize = 16;
/// For so long.
const LINGER: Duration = Duration::from_millis(1);
/// How many requests may wait for a channel, of facts and of the rest each; whoever brings one more waits.
const REQUESTS_WAITING: usize = 64;
/// How many channels in a row the broker may close over letters of which it answers none.
const FRUITLESS_TRIES: u32 = 5;
/// How often the queues of a wave's letters are made anew if they are gone.
const REMAKE_TRIES: u32 = 3;

const _: () = assert!(MAX_MESSAGE <= WAVE_BYTES, "the largest message must fit into a wave");

/// The publisher that all of a process shares.
#[derive(Debug)]
pub(crate) struct AmqpPublisher {
    work: Way,
    facts: Way,
    /// What the channels live on.
    _link: Arc<Link>,
}

/// To channels that take turns.
#[derive(Debug)]
struct Way(mpsc::Sender<Request>);

/// Letters that travel together, within a wave's bounds, and who waits for the answers.
#[derive(Debug)]
struct Request {
    letters: Vec<Letter>,
    bytes: usize,
    answers: oneshot::Sender<Vec<Published>>,
}

impl AmqpPublisher {
    pub(crate) fn start(link: Arc<Link>) -> Self {
        let work = Way::start(&link, CHANNELS);
        let facts = Way::start(&link, JOURNAL_CHANNELS);
        Self { work, facts, _link: link }
    }
}

#[async_trait]
impl Publisher for AmqpPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        let mut answers = vec![Published::Unknown; batch.len()];
        let (mut work, mut facts) = (Vec::new(), Vec::new());
        for (place, outgoing) in batch.into_iter().enumerate() {
            let way = if outgoing.to == Address::Journal { &mut facts } else { &mut work };
            match Letter::new(outgoing) {
                Ok(letter) => way.push((place, letter)),
                Err(why) => answers[place] = Published::Refused(why),
            }
        }
        let (work, facts) = join!(self.work.publish(work), self.facts.publish(facts));
        for (place, answer) in work.into_iter().chain(facts) {
            answers[place] = answer;
        }
        answers
    }
}

impl Way {
    fn start(link: &Arc<Link>, channels: usize) -> Self {
        let (requests, receiver) = mpsc::channel(REQUESTS_WAITING);
        let inbox = Arc::new(Mutex::new(Inbox { receiver, left_over: None }));
        for _ in 0..channels {
            let sender = Sender { inbox: Arc::clone(&inbox), line: Line::clone(link), channel: None };
            link.spawn(sender.run());
        }
        Self(requests)
    }

    /// What is more than a wave is sent in several, one after the other, so that it keeps its order.
    async fn publish(&self, letters: Vec<(usize, Letter)>) -> Vec<(usize, Published)> {
        let (places, letters): (Vec<_>, Vec<_>) = letters.into_iter().unzip();
        let mut answers = Vec::with_capacity(places.len());
        let mut wave = Letters::default();
        for letter in letters {
            if !wave.has_room_for(&letter) {
                answers.extend(self.request(mem::take(&mut wave)).await);
            }
            wave.push(letter);
        }
        if !wave.letters.is_empty() {
            answers.extend(self.request(wave).await);
        }
        places.into_iter().zip(answers).collect()
    }

    async fn request(&self, Letters { letters, bytes }: Letters) -> Vec<Published> {
        let count = letters.len();
        let (answers, answered) = oneshot::channel();
        let request = Request { letters, bytes, answers };
        let answered = async { self.0.send(request).await.ok().map(|()| answered)?.await.ok() };
        answered.await.unwrap_or_else(|| vec![Published::Unknown; count])
    }
}

#[derive(Default)]
struct Letters {
    letters: Vec<Letter>,
    bytes: usize,
}

impl Letters {
    fn has_room_for(&self, letter: &Letter) -> bool {
        self.letters.len() < WAVE_LETTERS && self.bytes + letter.message.body.len() <= WAVE_BYTES
    }

    fn push(&mut self, letter: Letter) {
        self.bytes += letter.message.body.len();
        self.letters.push(letter);
    }
}

/// Requests on their way to the channels.
struct Inbox {
    receiver: mpsc::Receiver<Request>,
    /// The one that did not fit into the last wave.
    left_over: Option<Request>,
}

impl Inbox {
    /// Waits for a request, and takes as many more as are there and fit into a wave with it. `None` if all publishers
    /// are gone.
    async fn gather(&mut self) -> Option<Vec<Request>> {
        let first = match self.left_over.take() {
            Some(request) => request,
            None => self.receiver.recv().await?,
        };
        let (mut letters, mut bytes) = (first.letters.len(), first.bytes);
        let mut requests = vec![first];
        while let Ok(request) = self.receiver.try_recv() {
            letters += request.letters.len();
            bytes += request.bytes;
            if letters > WAVE_LETTERS || bytes > WAVE_BYTES {
                self.left_over = Some(request);
                break;
            }
            requests.push(request);
        }
        Some(requests)
    }
}

/// The task that owns one publishing channel. Nobody else may publish on it: two tasks on one channel would get each
/// other's confirms.
struct Sender {
    inbox: Arc<Mutex<Inbox>>,
    line: Line,
    channel: Option<OwnChannel>,
}

impl Sender {
    /// Ends with the link, or when all publishers are gone. Whoever waits for an answer then learns that it is
    /// unknown.
    async fn run(mut self) {
        let end = self.line.end.clone();
        tokio::select! {
            () = end.wait() => {}
            () = self.send_waves() => {}
        }
        if let Some(mut channel) = self.channel {
            channel.close().await; // its waits are bounded
        }
    }

    async fn send_waves(&mut self) {
        let mut many = false;
        loop {
            let gathered = {
                let mut inbox = self.inbox.lock().await;
                if many && inbox.left_over.is_none() {
                    sleep(LINGER).await; // and nobody else takes anything meanwhile
                }
                inbox.gather().await
            };
            let Some(requests) = gathered else { return };
            let (letters, waiting) = unpack(requests);
            many = letters.len() >= MANY;
            let Some(mut answers) = self.send(letters).await else { return };
            for (count, waiting) in waiting.into_iter().rev() {
                let own = answers.split_off(answers.len() - count);
                let _ = waiting.send(own); // it fails if nobody waits any more
            }
        }
    }

    /// Sends until all are answered, in as many generations as it takes: what was unconfirmed when one was lost is
    /// sent again in the next, stored before or not. `None` at the end for good.
    async fn send(&mut self, letters: Vec<Letter>) -> Option<Vec<Published>> {
        let mut answers = vec![Published::Unknown; letters.len()];
        let fruitless = self.send_together(letters.into_iter().enumerate().collect(), &mut answers).await?;
        // The broker closes the channel over one of them. Alone, each shows whether it is that one.
        for (place, letter) in fruitless {
            if !self.send_together(vec![(place, letter)], &mut answers).await?.is_empty() {
                let why = format!("the broker closes every channel over it, {FRUITLESS_TRIES} in a row");
                answers[place] = Published::Refused(why);
            }
        }
        Some(answers)
    }

    /// Gives back what brings no answer but channels that the broker closes over it, [`FRUITLESS_TRIES`] in a row.
    /// Connections that are lost, however many, say nothing of the letters.
    async fn send_together(
        &mut self,
        mut left: Vec<(usize, Letter)>,
        answers: &mut [Published],
    ) -> Option<Vec<(usize, Letter)>> {
        let (mut fruitless, mut remade, mut silence) = (0, 0, SILENCE);
        let mut pauses = Pauses::new();
        while !left.is_empty() && fruitless < FRUITLESS_TRIES {
            let channel = self.channel().await?;
            let letters: Vec<&Letter> = left.iter().map(|(_, letter)| letter).collect();
            let Sent { answers: mut sent, disliked, silent } = tokio::select! {
                biased;
                sent = confirm_batch::send(channel, &letters, silence, || channel.is_blocked()) => sent,
                () = channel.over() => continue,
            };
            if remade < REMAKE_TRIES && self.remakes(&letters, &mut sent).await? {
                remade += 1;
            }
            let before = left.len();
            left = left
                .into_iter()
                .zip(sent)
                .filter_map(|((place, letter), answer)| {
                    let again = answer == Published::Unknown;
                    answers[place] = answer;
                    again.then_some((place, letter))
                })
                .collect();
            if silent {
                self.channel = None;
                silence = (silence * 2).min(SILENCE_MAX);
                let (count, transport) = (left.len(), &self.line.config);
                tracing::warn!("{transport} leaves {count} messages without an answer; they are sent again");
                if left.iter().any(|(_, letter)| letter.is_fact()) {
                    self.await_journal().await?; // rather than to wait for longer and longer silences
                }
            } else if left.len() < before {
                fruitless = 0;
            } else if disliked {
                fruitless += 1;
            }
            if !left.is_empty() {
                tracing::debug!("{} messages are sent again", left.len());
                sleep(pauses.next()).await;
            }
        }
        Some(left)
    }

    /// Whether some have no queue although it should exist; then the lanes are made again, or the journal, and the
    /// answers to these letters are open. `None` at the end for good.
    async fn remakes(&self, letters: &[&Letter], sent: &mut [Published]) -> Option<bool> {
        let gone = |letter: &Letter| self.line.should_exist(&letter.key);
        let mut some = false;
        for (letter, answer) in letters.iter().zip(sent) {
            if *answer == Published::Unroutable && gone(letter) {
                (some, *answer) = (true, Published::Unknown);
            }
        }
        if some {
            tracing::warn!("{} lacks queues that were there; making them anew", self.line.config);
            if letters.iter().any(|letter| letter.is_fact()) {
                self.await_journal().await?;
            } else {
                let generation = self.line.generation().await.ok()?;
                if let Err(error) = self.line.declare(&generation).await {
                    tracing::warn!("cannot make them anew: {error}");
                }
            }
        }
        Some(some)
    }

    /// Waits until there is a journal again, or there can be none, which the next answers then say. `None` at the end
    /// for good.
    async fn await_journal(&self) -> Option<()> {
        loop {
            let generation = self.line.generation().await.ok()?;
            match self.line.journal_ready(&generation).await {
                Ok(()) => return Some(()),
                Err(error) if error.is_retryable() => {} // the generation is over
                Err(error) => {
                    tracing::warn!("no fact can be published: {error}");
                    return Some(());
                }
            }
        }
    }

    /// The channel, or a new one if there is another generation or the broker closed the last one over a letter that
    /// it did not like. `None` at the end for good.
    async fn channel(&mut self) -> Option<&OwnChannel> {
        while self.channel.as_ref().is_none_or(|channel| !channel.is_open() || !channel.status().confirm()) {
            self.channel = None;
            let generation = self.line.generation().await.ok()?;
            match generation.publishing_channel().await {
                Ok(channel) => self.channel = Some(channel),
                Err(error) => generation.end.because(format!("nothing can be published: {error}")),
            }
        }
        self.channel.as_ref()
    }
}

/// Who waits for how many of a wave's answers.
type Waiting = (usize, oneshot::Sender<Vec<Published>>);

/// All letters of a wave, and who waits for them, in the same order.
fn unpack(requests: Vec<Request>) -> (Vec<Letter>, Vec<Waiting>) {
    let mut letters = Vec::with_capacity(requests.iter().map(|request| request.letters.len()).sum());
    let mut waiting = Vec::with_capacity(requests.len());
    for request in requests {
        waiting.push((request.letters.len(), request.answers));
        letters.extend(request.letters);
    }
    (letters, waiting)
}
