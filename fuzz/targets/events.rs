//! Every event, by the first byte of the input.

#![no_main]

use gristmill_shared::{
    Message,
    wire::{Event, Finished, Missing, Progress, WireMessage as _, WorkerHeartbeat},
};
use libfuzzer_sys::fuzz_target;

const TYPES: [&str; 4] = [Progress::TYPE, WorkerHeartbeat::TYPE, Missing::TYPE, Finished::TYPE];

fuzz_target!(|input: (u8, &[u8])| {
    let form = TYPES[usize::from(input.0) % TYPES.len()].to_owned();
    let message = Message { form, body: input.1.to_vec().into(), ..Message::default() };
    let _ = Event::decode(&message);
});
