//! Any bytes to the decoder: no panic, and what it reads is what was written.

#![no_main]

use bytes::{Bytes, BytesMut};
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Frame, Work};
use hostler_wire::limits::FRAME_BYTES_MAX;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    all_at_once(data);
    in_pieces(data);
    body(Bytes::copy_from_slice(data));
});

fn decoder() -> Decoder {
    let mut decoder = Decoder::new();
    decoder.accept_up_to(FRAME_BYTES_MAX);
    decoder
}

fn all_at_once(data: &[u8]) {
    let mut decoder = decoder();
    decoder.buffer().extend_from_slice(data);
    while let Ok(Some(frame)) = decoder.next_frame() {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        // The header's flags aside, the bytes stood in the data just so.
        let rest = data.len() - decoder.buffer().len();
        assert_eq!(bytes[12..], data[rest + 12 - bytes.len()..rest]);
        if let Frame::Assign(assign) = frame {
            assign
                .jobs
                .into_iter()
                .for_each(|assignment| body(assignment.body));
        }
    }
}

/// Byte by byte comes out what comes out at once.
fn in_pieces(data: &[u8]) {
    let (mut whole, mut pieces) = (decoder(), decoder());
    whole.buffer().extend_from_slice(data);
    for byte in data {
        pieces.buffer().extend_from_slice(&[*byte]);
        match pieces.next_frame() {
            Ok(None) => {}
            Ok(Some(frame)) => assert_eq!(whole.next_frame(), Ok(Some(frame))),
            Err(error) => return assert_eq!(whole.next_frame(), Err(error)),
        }
    }
    assert_eq!(whole.next_frame(), Ok(None));
}

fn body(bytes: Bytes) {
    if let Ok(work) = Work::decode(bytes.clone()) {
        assert_eq!(work.encode(), bytes);
    }
}
