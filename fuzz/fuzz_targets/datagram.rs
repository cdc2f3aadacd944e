#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| phalanx_transport::fuzzing::datagram(data));
