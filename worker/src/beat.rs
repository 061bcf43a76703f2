//! Tells whoever listens that this worker is alive.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use gristmill_shared::{
    Address, Outgoing, Publisher, Topic,
    wire::{Form, WorkerBeat},
};

use crate::shop::Shop;

/// How often a worker says that it is alive.
const BEAT_EVERY: Duration = Duration::from_secs(2);

/// Never ends. Nobody depends on a beat, so what becomes of it is not looked at.
pub(crate) async fn run(shop: Arc<Shop>, publisher: Arc<dyn Publisher>, slots: u32) {
    let mut beats = tokio::time::interval(BEAT_EVERY);
    loop {
        beats.tick().await;
        let _ = shop.reconnected_at(); // looked at now and then, so that it is not noticed late
        let beat = WorkerBeat {
            worker: shop.id.clone(),
            lane: shop.lane.clone(),
            slots,
            busy: shop.counts.busy.load(Ordering::Relaxed),
            done: shop.counts.done.load(Ordering::Relaxed),
            errors: shop.counts.errors.load(Ordering::Relaxed),
        };
        let id = format!("{}/beat/{}", shop.id, shop.message_number());
        let to = Address::Events(Topic::Worker(shop.lane.clone(), shop.id.clone()));
        let _ = publisher.publish(vec![Outgoing { to, message: beat.message(id, shop.id.as_str()) }]).await;
    }
}
