//! A post is a place in the fleet that is kept manned: who leaves it is followed by another.

use std::{io, sync::Arc, time::Duration};

use rustix::process::Signal;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    account::Left,
    supervised_process::{Child, Ended},
    drill_role::Duty,
    workspace::Site,
};
use crate::Exit;

/// How many orders may wait at a post. The plan leaves time between them, so more than one is seldom.
pub(super) const ORDERS: usize = 8;
/// How long a process may take to leave in order: twice the time that a worker needs at worst.
pub(super) const LEAVE_BOUND: Duration = Duration::from_secs(60);
/// Before one who left by itself is followed, doubled each time up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Who was up for so long starts with a short backoff again.
const STEADY: Duration = Duration::from_secs(10);

/// What is done to the process at a post.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// SIGKILL.
    Kill,
    /// SIGTERM; it must exit 0.
    Drain,
    /// The same after a while, and nobody follows.
    DrainAfter(Duration),
    /// SIGINT to a producer, which says how to go on.
    Interrupt,
    /// SIGSTOP, and SIGCONT after a while.
    Pause(Duration),
}

/// An order to a post, and where to say what came of it.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) what: What,
    /// When nobody is up by then, it is too late.
    pub(super) until: Instant,
    pub(super) done: oneshot::Sender<Result<String, String>>,
}

/// A post.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) name: String,
    pub(super) site: Arc<Site>,
    pub(super) duty: Duty,
    pub(super) orders: mpsc::Receiver<Order>,
    /// Whether somebody is there; for those who wait for the fleet.
    pub(super) manned: watch::Sender<bool>,
    /// When it is cancelled, the one who is there drains and nobody follows.
    pub(super) close: CancellationToken,
}

/// How a process came to its end.
enum End {
    /// By itself.
    Own(Ended),
    /// As it was ordered.
    Ordered(Ended),
    /// As ordered, and the post is given up.
    Last,
}

impl Post {
    /// Keeps the post manned until it is closed, or there is nothing more to do.
    pub(super) async fn keep(mut self) {
        let mut backoff = BACKOFF.0;
        loop {
            // One who starts while the broker is away would give up.
            self.site.broker.until_up().await;
            let Some(words) = self.duty.next(&self.site).await else { return };
            let began = Instant::now();
            let end = match self.site.start(&self.name, &words, self.duty.mark()) {
                Ok(child) => self.attend(child).await,
                Err(error) => Err(error),
            };
            let (ended, ordered) = match end {
                Ok(End::Last) => return,
                Ok(End::Ordered(ended)) => (ended, true),
                Ok(End::Own(ended)) => (ended, false),
                Err(error) => return self.site.defect(format!("{}: {error}", self.name)),
            };
            self.duty.follow(&ended);
            if ordered || self.duty.is_done(&ended) {
                continue;
            }
            self.left_by_itself(&ended);
            if began.elapsed() > STEADY {
                backoff = BACKOFF.0;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = self.close.cancelled() => return,
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Stays with a process to its end, and does to it what is ordered.
    async fn attend(&mut self, mut child: Child) -> io::Result<End> {
        let up = child.until_up();
        tokio::select! {
            () = up => {}
            ended = child.ended() => {
                self.duty.up(&self.site, &child); // it may have been, for a moment
                return ended.map(End::Own);
            }
            () = self.close.cancelled() => return Ok(End::Last), // dropped, and so killed
        }
        self.duty.up(&self.site, &child);
        self.manned.send_replace(true);
        loop {
            let order = tokio::select! {
                ended = child.ended() => return ended.map(End::Own),
                order = self.orders.recv() => order,
                () = self.close.cancelled() => None,
            };
            let Some(order) = order else {
                if let (Err(why), _) = self.let_go(&mut child, Signal::TERM, Exit::Ok).await? {
                    self.site.defect(format!("{} at the end: {why}", self.name));
                }
                return Ok(End::Last);
            };
            if order.until < Instant::now() || order.done.is_closed() {
                let _ = order.done.send(Err("nobody was there in time".into()));
                continue;
            }
            let (came, ended) = self.carry_out(&mut child, order.what).await?;
            let last = matches!(order.what, What::DrainAfter(_));
            let _ = order.done.send(came); // whoever asked may have gone
            match ended {
                Some(_) if last => return Ok(End::Last),
                Some(ended) => return Ok(End::Ordered(ended)),
                None => {}
            }
        }
    }

    /// Does what is ordered, and says what came of it; and how the process ended, if it did.
    async fn carry_out(
        &self,
        child: &mut Child,
        what: What,
    ) -> io::Result<(Result<String, String>, Option<Ended>)> {
        let pid = child.pid();
        match what {
            What::Kill => {
                child.signal(Signal::KILL)?;
                let ended = child.ended().await?;
                let came = match ended.was_killed() {
                    true => Ok(format!("{}, pid {pid}", self.name)),
                    false => {
                        self.left_by_itself(&ended);
                        Err(format!("{} had ended by itself: {}", self.name, ended.status))
                    }
                };
                Ok((came, Some(ended)))
            }
            What::Drain => self.let_go(child, Signal::TERM, Exit::Ok).await,
            What::DrainAfter(visit) => {
                tokio::select! {
                    () = tokio::time::sleep(visit) => {}
                    ended = child.ended() => {
                        let ended = ended?;
                        self.left_by_itself(&ended);
                        return Ok((Err(format!("{} left by itself: {}", self.name, ended.status)), Some(ended)));
                    }
                }
                self.let_go(child, Signal::TERM, Exit::Ok).await
            }
            What::Interrupt => self.let_go(child, Signal::INT, Exit::Interrupted).await,
            What::Pause(lasts) => {
                if !child.freeze().await? {
                    return Ok((Err(format!("{} ended instead of standing still", self.name)), None));
                }
                self.site.say(format_args!("{} stands still, pid {pid}", self.name));
                tokio::time::sleep(lasts).await;
                let still = child.is_frozen()?;
                child.signal(Signal::CONT)?;
                let came = match still {
                    true => Ok(format!("{}, pid {pid}, for {:.1} s", self.name, lasts.as_secs_f64())),
                    false => Err(format!("{} went on before it was told to", self.name)),
                };
                Ok((came, None))
            }
        }
    }

    /// Asks a process to leave. It must do so in time and with this exit code; it may have lost its broker meanwhile.
    async fn let_go(
        &self,
        child: &mut Child,
        signal: Signal,
        exit: Exit,
    ) -> io::Result<(Result<String, String>, Option<Ended>)> {
        let (name, pid) = (&self.name, child.pid());
        let began = Instant::now();
        child.signal(signal)?;
        let Ok(ended) = tokio::time::timeout(LEAVE_BOUND, child.ended()).await else {
            let why =
                format!("{name}, pid {pid}, had not left {} s after it was asked to", LEAVE_BOUND.as_secs());
            self.site.defect(why.clone());
            child.signal(Signal::KILL)?;
            return Ok((Err(why), Some(child.ended().await?)));
        };
        let ended = ended?;
        let came = match ended.code() {
            Some(code) if code == exit as i32 => {
                let took = began.elapsed().as_secs_f64();
                Ok(format!("{name}, pid {pid}, exit code {code} after {took:.1} s"))
            }
            _ => {
                self.left_by_itself(&ended);
                Err(format!("{name}: {}: {}", ended.status, ended.last))
            }
        };
        Ok((came, Some(ended)))
    }

    /// Takes note of an end that nobody had asked for; a producer that is through with its job had leave to go.
    fn left_by_itself(&self, ended: &Ended) {
        if self.duty.is_done(ended) {
            return;
        }
        let left = Left {
            at_seconds: self.site.elapsed().as_secs_f64(),
            who: self.name.clone(),
            was_up: ended.was_up,
            code: ended.code(),
            said: ended.last.clone(),
        };
        if !left.found_no_broker() {
            self.site.defect(left.to_string());
        }
        self.site.left(left);
    }
}
