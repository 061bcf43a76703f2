//! Publishing: requests from everywhere, and a few channels that each send one wave after the other.

use std::{mem, sync::Arc};

use async_trait::async_trait;
use gristmill_shared::{Outgoing, Published, Publisher};
use lapin::{Channel, Connection, options::ConfirmSelectOptions};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::timeout,
};

use crate::{
    MAX_MESSAGE, channel,
    end::End,
    failure,
    generation::{ANSWER_TIMEOUT, Generation},
    letter::Letter,
    wave,
};

/// How many channels publish. While one waits for its confirms, the next one sends.
const CHANNELS: usize = 2;
/// How many letters a channel may have unconfirmed. All channels together: 1,000.
const WAVE_LETTERS: usize = 500;
/// How many bytes of bodies a channel may have unconfirmed. All channels together: 32 MiB.
const WAVE_BYTES: usize = 16 << 20;
/// How many requests may wait for a channel; whoever brings one more waits.
const REQUESTS_WAITING: usize = 64;

const _: () = assert!(MAX_MESSAGE <= WAVE_BYTES, "the largest message must fit into a wave");

/// The publisher that all of a process shares.
#[derive(Debug)]
pub(crate) struct AmqpPublisher {
    requests: mpsc::Sender<Request>,
    /// What the channels live on.
    _generation: Arc<Generation>,
}

/// Letters that travel together, within a wave's bounds, and who waits for the answers.
#[derive(Debug)]
struct Request {
    letters: Vec<Letter>,
    bytes: usize,
    answers: oneshot::Sender<Vec<Published>>,
}

impl AmqpPublisher {
    pub(crate) fn start(generation: Arc<Generation>) -> Self {
        let (requests, receiver) = mpsc::channel(REQUESTS_WAITING);
        let inbox = Arc::new(Mutex::new(Inbox { receiver, left_over: None }));
        for _ in 0..CHANNELS {
            let sender = Sender {
                inbox: Arc::clone(&inbox),
                connection: generation.publishing(),
                channel: None,
                end: generation.end.clone(),
            };
            generation.spawn(sender.run());
        }
        Self { requests, _generation: generation }
    }

    async fn request(&self, letters: Vec<Letter>, bytes: usize) -> Vec<Published> {
        let count = letters.len();
        let (answers, answered) = oneshot::channel();
        let request = Request { letters, bytes, answers };
        let answered = async { self.requests.send(request).await.ok().map(|()| answered)?.await.ok() };
        answered.await.unwrap_or_else(|| vec![Published::Unknown; count])
    }
}

#[async_trait]
impl Publisher for AmqpPublisher {
    /// A batch that is larger than a wave is sent in several, one after the other, so that it keeps its order.
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        let mut answers = Vec::with_capacity(batch.len());
        let mut wave = Letters::default();
        let mut refused = Vec::new();
        for (index, outgoing) in batch.into_iter().enumerate() {
            match Letter::new(outgoing) {
                Ok(letter) => {
                    if !wave.has_room_for(&letter) {
                        let Letters { letters, bytes } = mem::take(&mut wave);
                        answers.extend(self.request(letters, bytes).await);
                    }
                    wave.push(letter);
                }
                Err(why) => refused.push((index, why)),
            }
        }
        if !wave.letters.is_empty() {
            answers.extend(self.request(wave.letters, wave.bytes).await);
        }
        for (index, why) in refused {
            answers.insert(index, Published::Refused(why));
        }
        answers
    }
}

#[derive(Default)]
struct Letters {
    letters: Vec<Letter>,
    bytes: usize,
}

impl Letters {
    fn has_room_for(&self, letter: &Letter) -> bool {
        self.letters.len() < WAVE_LETTERS && self.bytes + letter.body.len() <= WAVE_BYTES
    }

    fn push(&mut self, letter: Letter) {
        self.bytes += letter.body.len();
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
    connection: Arc<Connection>,
    channel: Option<Channel>,
    end: End,
}

impl Sender {
    /// Ends with the generation, or when all publishers are gone. Whoever waits for an answer then learns that it is
    /// unknown.
    async fn run(mut self) {
        let end = self.end.clone();
        tokio::select! {
            () = end.wait() => {}
            () = self.send_waves() => {}
        }
        if let Some(channel) = &self.channel {
            channel::close(channel).await;
        }
    }

    async fn send_waves(&mut self) {
        loop {
            let gathered = self.inbox.lock().await.gather().await;
            let Some(requests) = gathered else { return };
            let (letters, waiting) = unpack(requests);
            let mut answers = match self.channel().await {
                Ok(channel) => wave::send(channel, &letters).await,
                Err(why) => {
                    self.end.because(format!("cannot open a channel to publish on: {why}"));
                    return;
                }
            };
            for (count, waiting) in waiting.into_iter().rev() {
                let own = answers.split_off(answers.len() - count);
                let _ = waiting.send(own); // it fails if nobody waits any more
            }
        }
    }

    /// The channel, or a new one if the broker closed the last one over a letter that it did not like.
    async fn channel(&mut self) -> Result<&Channel, String> {
        if self.channel.as_ref().is_none_or(|channel| !channel.status().connected()) {
            let opening = async {
                let channel = self.connection.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                lapin::Result::Ok(channel)
            };
            let opened = timeout(ANSWER_TIMEOUT, opening).await.map_err(|_| "no answer")?;
            self.channel = Some(opened.map_err(|error| failure::reason(&error))?);
        }
        self.channel
            .as_ref()
            .filter(|channel| channel.status().confirm())
            .ok_or_else(|| "it does not confirm".into())
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
