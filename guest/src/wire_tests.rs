//! Tests of the wire: the shared fixtures, then generated input.
use serde_json::Value;

use super::*;

struct Fixture {
    name: String,
    bytes: Vec<u8>,
    row: Value,
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

fn fill(row: &Value) -> Vec<u8> {
    let times = row["fill"]["times"].as_u64().unwrap_or(0) as usize;
    unhex(row["fill"]["hex"].as_str().unwrap_or("")).repeat(times)
}

fn fixtures() -> Vec<Fixture> {
    let rows: Vec<Value> = serde_json::from_str(include_str!("../../tests/fixtures/wire_frames.json")).expect("JSON");
    assert!(rows.len() > 50);
    rows.into_iter()
        .map(|row| {
            let mut bytes = unhex(row["hex"].as_str().expect("hex"));
            bytes.extend(fill(&row));
            Fixture { name: row["name"].as_str().expect("name").to_owned(), bytes, row }
        })
        .collect()
}

fn kind_named(name: &str) -> Kind {
    (1..=9).filter_map(kind_of).find(|kind| format!("{kind:?}").to_uppercase() == name).expect("a kind")
}

#[test]
fn every_fixture_means_what_it_says() {
    for Fixture { name, bytes, row } in fixtures() {
        match row["error"].as_str() {
            Some("truncated") => assert_eq!(parse(&bytes), Ok(None), "{name}"),
            Some(error) => assert_eq!(parse(&bytes).map_err(Malformed::as_str), Err(error), "{name}"),
            None => {
                let mut payload = unhex(row["frame"]["payload"].as_str().expect("payload"));
                payload.extend(fill(&row));
                let frame = Frame {
                    stream: row["frame"]["stream"].as_u64().expect("stream") as u32,
                    kind: kind_named(row["frame"]["kind"].as_str().expect("kind")),
                    flags: row["frame"]["flags"].as_u64().expect("flags") as u8,
                    payload: &payload,
                };
                let mut written = Vec::new();
                put_header(&mut written, frame.stream, frame.kind, frame.flags, payload.len());
                written.extend_from_slice(&payload);
                assert!(written == bytes, "{name}: written");
                assert_eq!(parse(&bytes), Ok(Some((frame, bytes.len()))), "{name}");
            }
        }
    }
}

#[test]
fn a_frame_cut_anywhere_is_incomplete_and_never_another_frame() {
    for Fixture { name, bytes, row } in fixtures().iter().filter(|fixture| fixture.row["frame"].is_object()) {
        for cut in (0..bytes.len()).take(64).chain([bytes.len() - 1]) {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "{name} cut at {cut}: {row}");
        }
    }
}

#[test]
fn a_malformed_header_is_refused_before_its_payload_arrives() {
    for Fixture { name, bytes, row } in fixtures() {
        if let Some(error) = row["error"].as_str().filter(|error| *error != "truncated") {
            assert_eq!(parse(&bytes[..HEADER_BYTES]).map_err(Malformed::as_str), Err(error), "{name}");
        }
    }
}

/// A small generator (SplitMix64): the same bytes in each run, other bytes for each seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[test]
fn frames_survive_any_split_of_the_stream() {
    let valid: Vec<_> = fixtures().into_iter().filter(|fixture| fixture.row["frame"].is_object() && fixture.bytes.len() < 4_096).collect();
    for seed in 0..200 {
        let mut random = Random(seed);
        let picks: Vec<_> = (0..20).map(|_| &valid[random.below(valid.len() as u64) as usize]).collect();
        let stream: Vec<u8> = picks.iter().flat_map(|fixture| fixture.bytes.clone()).collect();
        let (mut buffer, mut at, mut found) = (Vec::new(), 0, 0);
        while at < stream.len() {
            let step = (1 + random.below(97) as usize).min(stream.len() - at);
            buffer.extend_from_slice(&stream[at..at + step]);
            at += step;
            while let Some((frame, used)) = parse(&buffer).expect("valid") {
                assert_eq!(frame.payload, &picks[found].bytes[HEADER_BYTES..]);
                found += 1;
                buffer.drain(..used);
            }
        }
        assert_eq!((found, buffer.len()), (picks.len(), 0));
    }
}

#[test]
fn any_bytes_are_judged_without_a_panic_and_a_parsed_frame_is_canonical() {
    let mut random = Random(7);
    for _ in 0..200_000 {
        let length = random.below(40) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        // Most random headers die at their length; make half of them plausible.
        if random.below(2) == 0 && length >= HEADER_BYTES {
            bytes[0] = random.below(24) as u8;
            bytes[1..4].fill(0);
            bytes[8] = random.below(10) as u8;
            bytes[9] = random.below(5) as u8;
            bytes[10..12].fill(0);
        }
        if let Ok(Some((frame, used))) = parse(&bytes) {
            let mut written = Vec::new();
            put_header(&mut written, frame.stream, frame.kind, frame.flags, frame.payload.len());
            written.extend_from_slice(frame.payload);
            assert_eq!(written, bytes[..used]);
        }
    }
}
