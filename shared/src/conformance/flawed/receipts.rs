//! A consumer with one flaw, and the settler of its receipts.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::{
    Flaw,
    flaw_memory::{FlawMemory, ReceiptSlot},
    readers::await_flawed,
};
use crate::{Consumer, Delivery, Receipt, Settlement, Settler, Token, TransportError};

#[derive(Debug)]
pub(super) struct FlawedConsumer {
    inner: Option<Box<dyn Consumer>>,
    flaw: Flaw,
    memory: Arc<FlawMemory>,
    last_tag: u64,
}

impl FlawedConsumer {
    pub(super) fn new(inner: Box<dyn Consumer>, flaw: Flaw, memory: Arc<FlawMemory>) -> Self {
        Self { inner: Some(inner), flaw, memory, last_tag: 0 }
    }

    fn deliver(&mut self, delivery: Delivery) -> Delivery {
        self.last_tag += 1;
        let slot: ReceiptSlot = Arc::new(Mutex::new(Some(delivery.receipt)));
        let id = delivery.message.id.clone();
        self.memory.newest.lock().unwrap().insert(id.clone(), Arc::clone(&slot));
        self.memory.in_order.lock().unwrap().push_back((self.last_tag, None));
        let settler = FlawedSettler { slot, id, flaw: self.flaw, memory: Arc::clone(&self.memory) };
        let token = Token { generation: 0, tag: self.last_tag };
        Delivery {
            message: delivery.message,
            deliveries_before: match self.flaw {
                Flaw::ForgetsRedelivered => 0,
                Flaw::CountsToOne => delivery.deliveries_before.min(1),
                _ => delivery.deliveries_before,
            },
            receipt: Receipt::new(token, Arc::new(settler)),
        }
    }
}

#[async_trait]
impl Consumer for FlawedConsumer {
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError> {
        self.memory.held_back.lock().unwrap().drain(..).for_each(Receipt::ack);
        let inner = self.inner.as_mut().unwrap();
        let max = if self.flaw == Flaw::IgnoresMax { usize::MAX } else { max };
        let deliveries = await_flawed(self.flaw, inner.recv(max)).await?;
        Ok(deliveries.into_iter().map(|delivery| self.deliver(delivery)).collect())
    }

    async fn stop(&mut self) -> Result<(), TransportError> {
        if self.flaw == Flaw::NeverStops {
            return Ok(());
        }
        self.inner.as_mut().unwrap().stop().await
    }

    async fn close(mut self: Box<Self>) {
        let inner = self.inner.take().unwrap();
        if self.flaw == Flaw::LeaksOnClose { std::mem::forget(inner) } else { inner.close().await }
    }
}

impl Drop for FlawedConsumer {
    fn drop(&mut self) {
        if self.flaw == Flaw::LeaksOnDrop {
            std::mem::forget(self.inner.take());
        }
    }
}

/// A settler of one delivery.
#[derive(Debug)]
struct FlawedSettler {
    slot: ReceiptSlot,
    id: String,
    flaw: Flaw,
    memory: Arc<FlawMemory>,
}

impl Settler for FlawedSettler {
    fn settle(&self, token: Token, how: Settlement) {
        let newest = || self.memory.newest.lock().unwrap()[&self.id].lock().unwrap().take();
        let receipt = match self.flaw {
            Flaw::IgnoresGenerations => newest(),
            _ => self.slot.lock().unwrap().take(),
        };
        let Some(receipt) = receipt else { return };
        match (self.flaw, how) {
            (Flaw::ForgetsAck, Settlement::Ack) if self.id == "7" => drop(receipt),
            (Flaw::LosesAcksOnClose, Settlement::Ack) => {
                self.memory.held_back.lock().unwrap().push(receipt);
            }
            (Flaw::SettlesInOrder, _) => {
                let mut waiting = self.memory.in_order.lock().unwrap();
                if let Some((_, place)) = waiting.iter_mut().find(|(tag, _)| *tag == token.tag) {
                    *place = Some(receipt);
                }
                while let Some((_, Some(_))) = waiting.front() {
                    let _ = waiting.pop_front().and_then(|(_, receipt)| receipt).map(Receipt::ack);
                }
            }
            (Flaw::AcksRequeued, _) | (_, Settlement::Ack) => receipt.ack(),
            (_, Settlement::Requeue) => receipt.requeue(),
        }
    }

    fn extend(&self, token: Token) {
        if self.flaw == Flaw::AcksExtended {
            self.settle(token, Settlement::Ack);
        }
    }
}

impl Drop for FlawedSettler {
    fn drop(&mut self) {
        if self.flaw == Flaw::AcksDropped
            && let Some(receipt) = self.slot.lock().unwrap().take()
        {
            receipt.ack();
        }
    }
}
