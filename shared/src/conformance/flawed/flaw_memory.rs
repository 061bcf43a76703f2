//! The state that all flawed connections to one broker share.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, OnceLock},
};

use crate::{Lane, Message, Outgoing, Published, Receipt, Transport};

/// A delivery's receipt of the inner transport, until it is settled.
pub(super) type ReceiptSlot = Arc<Mutex<Option<Receipt>>>;

/// The shared state of all flawed connections to one broker.
#[derive(Debug, Default)]
pub(super) struct FlawMemory {
    pub(super) connections: Mutex<Vec<Arc<dyn Transport>>>,
    /// The lane that was opened first.
    pub(super) lane: OnceLock<Lane>,
    pub(super) last_answers: Mutex<Vec<Published>>,
    pub(super) rejected: Mutex<Option<Outgoing>>,
    pub(super) events: Mutex<VecDeque<Message>>,
    pub(super) newest: Mutex<HashMap<String, ReceiptSlot>>,
    pub(super) in_order: Mutex<VecDeque<(u64, Option<Receipt>)>>,
    pub(super) held_back: Mutex<Vec<Receipt>>,
}
