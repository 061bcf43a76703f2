//! Every message that a sink takes, by the first byte of the input.

#![no_main]

use gristmill_shared::{
    Message,
    wire::{Aborted, Audit, Cancelled, Opened, Reopen, Results, Sealed, SinkMessage, WireMessage as _},
};
use libfuzzer_sys::fuzz_target;

const TYPES: [&str; 7] = [
    Results::TYPE,
    Opened::TYPE,
    Sealed::TYPE,
    Aborted::TYPE,
    Cancelled::TYPE,
    Reopen::TYPE,
    Audit::TYPE,
];

fuzz_target!(|input: (u8, &[u8])| {
    let form = TYPES[usize::from(input.0) % TYPES.len()].to_owned();
    let message = Message { form, body: input.1.to_vec().into(), ..Message::default() };
    if let Ok(decoded) = SinkMessage::decode(&message) {
        let _ = decoded.job();
    }
});
