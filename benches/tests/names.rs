//! Runs the command line of `measure`.
#![cfg(target_os = "linux")]

use std::process::Command;

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    for (words, unknown, known) in [
        (["--only", "hop,yeild"], "'yeild'", ["yield", "hop", "switch_1000"]),
        (["--impl", "trapline,tokyo"], "'tokyo'", ["tokio", "floor-boxed", "may"]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_measure")).args(words).output().unwrap();
        assert_eq!((output.status.code(), &*output.stdout), (Some(2), &b""[..]));
        let error = String::from_utf8(output.stderr).unwrap();
        for name in known.into_iter().chain([unknown]) {
            assert!(error.contains(name), "{name}: {error}");
        }
    }
}
