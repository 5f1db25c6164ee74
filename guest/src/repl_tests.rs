//! Tests of what the REPL may say.
use super::*;

fn message(id: u32, kind: u32, exit_code: i32, bytes: u32, rest: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes()[..], &kind.to_le_bytes(), &exit_code.to_le_bytes(), &bytes.to_le_bytes(), rest].concat()
}

fn done(exit_code: i32, value: Option<&str>) -> Option<Result<Message, &'static str>> {
    Some(Ok(Message::Done { exit_code, value: value.map(str::to_owned) }))
}

#[test]
fn a_reply_is_complete_with_its_value_and_not_before() {
    let bytes = message(3, DONE, 7, 2, b"42");
    for cut in 0..bytes.len() {
        assert_eq!(parse_message(&bytes[..cut], 3), None, "{cut}");
    }
    assert_eq!(parse_message(&bytes, 3), done(7, Some("42")));
    assert_eq!(parse_message(&message(3, DONE, 0, NO_VALUE, b""), 3), done(0, None));
    assert_eq!(parse_message(&message(3, DONE, 0, 0, b""), 3), done(0, Some("")));
    assert_eq!(parse_message(&message(3, DONE, 0, 1, b"\xff"), 3), done(0, Some("\u{fffd}")));
}

#[test]
fn display_data_is_announced_with_its_length_alone() {
    let most = DISPLAY_ITEM_BYTES as u32;
    assert_eq!(parse_message(&message(3, DISPLAY, 0, most, b"{}"), 3), Some(Ok(Message::Display(DISPLAY_ITEM_BYTES))));
    assert_eq!(parse_message(&message(3, HAS_STDIN, 0, 0, b"more"), 3), Some(Ok(Message::HasStdin)));
}

#[test]
fn anything_else_is_a_violation() {
    let bad = [
        message(4, DONE, 0, NO_VALUE, b""),
        message(3, DONE, -1, NO_VALUE, b""),
        message(3, DONE, 256, NO_VALUE, b""),
        message(3, DONE, 0, NO_VALUE, b"x"),
        message(3, DONE, 0, 1, b"xx"),
        message(3, DONE, 0, (VALUE_MAX_BYTES + 1) as u32, b""),
        message(3, DONE, 0, NO_VALUE - 1, b""),
        message(3, DISPLAY, 0, 0, b""),
        message(3, DISPLAY, 1, 2, b"{}"),
        message(3, DISPLAY, 0, DISPLAY_ITEM_BYTES as u32 + 1, b""),
        message(3, HAS_STDIN, 0, 1, b"x"),
        message(3, 3, 0, 0, b""),
    ];
    for bytes in bad {
        assert!(matches!(parse_message(&bytes, 3), Some(Err(_))), "{bytes:?}");
    }
}

#[test]
fn a_long_value_is_cut() {
    let bytes = message(1, DONE, 0, VALUE_BYTES as u32 + 5, &vec![b'v'; VALUE_BYTES + 5]);
    let Some(Ok(Message::Done { value: Some(value), .. })) = parse_message(&bytes, 1) else { panic!("no value") };
    assert_eq!(value.len(), VALUE_BYTES);
}
