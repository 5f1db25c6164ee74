//! Tests of an execution's bookkeeping.
use serde_json::json;

use super::*;
use crate::error::Code;

fn open() -> Value {
    json!({"method": "exec", "envBytes": 0, "codeBytes": 4, "timeoutMs": 30000, "stdin": false, "stdoutLimit": 1_000_000, "stderrLimit": 100_000})
}

fn body_of(env: &str, code: &[u8]) -> Body {
    let mut json = open();
    json["envBytes"] = env.len().into();
    json["codeBytes"] = code.len().into();
    let mut body = Body::default();
    body.start(&Request::parse(&json).expect("a request"));
    body.append(env.as_bytes()).expect("room");
    body.append(code).expect("room");
    assert!(body.is_complete());
    body
}

#[test]
fn parameters_at_their_limits_pass_and_beyond_are_refused() {
    assert!(Request::parse(&open()).is_ok());
    for (name, value) in [("codeBytes", 1_048_577), ("timeoutMs", 300_001), ("stdoutLimit", 1_000_001), ("stderrLimit", 100_001)] {
        let mut json = open();
        json[name] = value.into();
        assert_eq!(Request::parse(&json).expect_err(name).code, Code::Limit, "{name}");
        json[name] = (value - 1).into();
        assert!(Request::parse(&json).is_ok(), "{name}");
    }
}

#[test]
fn parameters_of_the_wrong_type_or_missing_are_refused() {
    for name in ["envBytes", "codeBytes", "timeoutMs", "stdoutLimit", "stderrLimit"] {
        for bad in [json!(null), json!(-1), json!(1.5), json!("1"), json!({}), json!(u64::MAX)] {
            let mut json = open();
            json[name] = bad.clone();
            assert!(Request::parse(&json).is_err(), "{name} {bad}");
        }
    }
    for name in ["stdin", "final", "assist"] {
        for bad in [json!(1), json!("no"), json!([])] {
            let mut json = open();
            json[name] = bad;
            assert_eq!(Request::parse(&json).expect_err(name).code, Code::BadRequest);
        }
    }
    assert!(Request::parse(&json!([])).is_err());
}

#[test]
fn a_body_may_not_be_longer_than_announced() {
    let mut body = Body::default();
    body.start(&Request::parse(&open()).expect("a request"));
    body.append(b"pas").expect("room");
    assert!(!body.is_complete());
    assert!(body.append(b"s!").is_err());
    body.append(b"s").expect("room");
    assert!(body.is_complete());
}

#[test]
fn a_byte_order_mark_is_dropped_once_and_only_from_the_code() {
    let mut body = body_of("A=1\0", "\u{feff}\u{feff}x".as_bytes());
    body.check().expect("valid");
    assert_eq!((body.env(), body.code()), (&b"A=1\0"[..], "\u{feff}x".as_bytes()));
    assert!(body_of("", "\u{feff} \n".as_bytes()).check().is_err());
    assert!(body_of("A\0", b"x").check().is_err());
}

#[test]
fn the_request_is_contiguous_with_and_without_a_seed() {
    let mut body = body_of("A=1\0", b"pass");
    let numbers = |fields: [u32; 6]| fields.iter().flat_map(|field| field.to_le_bytes()).collect::<Vec<_>>();
    assert_eq!(body.request(7, None), [numbers([0x3258_4253, 7, 0, 0, 4, 4]), b"A=1\0pass".to_vec()].concat());
    assert_eq!(body.request(8, Some(&[9; 32])), [numbers([0x3258_4253, 8, 0, 32, 4, 4]), vec![9; 32], b"A=1\0pass".to_vec()].concat());
}

#[test]
fn a_time_out_wins_over_whatever_the_program_returned() {
    let mut execution = Execution::new(1, 1, &Request::parse(&open()).expect("a request"));
    execution.run(1_000);
    assert_eq!((execution.next_us(), execution.watch_at_us.take()), (Some(1_001_000), Some(1_001_000)));
    assert_eq!(execution.next_us(), Some(30_001_000));
    execution.outcome.is_timed_out = true;
    execution.end(5_000, 0, [0, 0]);
    assert_eq!((execution.outcome.exit_code, execution.outcome.execution_us, execution.next_us()), (-1, 4_000, None));
}

#[test]
fn a_result_always_fits_a_frame() {
    let mut outcome = Execution::new(1, 1, &Request::parse(&open()).expect("a request")).outcome;
    for value in [None, Some("é".repeat(20_000)), Some("\u{1}".repeat(30_000)), Some(String::new())] {
        outcome.value = value.clone();
        let mut out = b"before".to_vec();
        outcome.write_json(&mut out, 65_536);
        assert!(out.starts_with(b"before") && out.len() <= 6 + 65_536);
        let json: Value = serde_json::from_slice(&out[6..]).expect("JSON");
        assert_eq!(json["value"].is_string(), value.is_some());
        assert_eq!(json["outputLimit"], Value::Null);
    }
}

#[test]
fn a_result_says_every_field() {
    let mut outcome = Outcome { exit_code: -1, is_timed_out: true, execution_us: 0, is_reset: true, output_limit: None, value: None };
    let said = |outcome: &Outcome| {
        let mut out = Vec::new();
        outcome.write_json(&mut out, 65_536);
        serde_json::from_slice::<Value>(&out).expect("JSON")
    };
    assert_eq!(
        said(&outcome),
        serde_json::json!({ "exitCode": -1, "timedOut": true, "executionUs": 0, "reset": true, "outputLimit": null, "value": null })
    );
    for (limit, name) in [(0, "stdout"), (1, "stderr")] {
        outcome = Outcome {
            exit_code: 255,
            is_timed_out: false,
            execution_us: u64::MAX,
            is_reset: false,
            output_limit: Some(limit),
            value: Some("\"é\n".into()),
        };
        assert_eq!(
            said(&outcome),
            serde_json::json!({ "exitCode": 255, "timedOut": false, "executionUs": u64::MAX, "reset": false, "outputLimit": name, "value": "\"é\n" })
        );
    }
}
