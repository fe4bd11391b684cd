//! Ending the program for what must not be survived.

use core::fmt;

/// Panics in such a way that no catch goes on after it.
///
/// For broken invariants in places where unwinding would itself be unsound. `core` has no abort; a panic
/// while another unwinds ends every program.
#[cold]
pub(crate) fn fatal(message: impl fmt::Display) -> ! {
    struct Again<'a>(&'a dyn fmt::Display);
    impl Drop for Again<'_> {
        fn drop(&mut self) {
            panic!("{}", self.0);
        }
    }
    let _again = Again(&message);
    panic!("{message}");
}
