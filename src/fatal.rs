//! Ends the program after an error that it must not survive.

use core::fmt;

/// Panics in such a way that no catch of a panic lets the program continue.
///
/// It is for broken invariants in places where unwinding would itself be unsound. `core` has no
/// abort; but a panic during the unwinding of another panic ends every program.
#[cold]
pub(crate) fn fatal(message: impl fmt::Display) -> ! {
    /// Panics again when the first panic unwinds.
    struct Again<'a>(&'a dyn fmt::Display);
    impl Drop for Again<'_> {
        fn drop(&mut self) {
            panic!("{}", self.0);
        }
    }
    let _again = Again(&message);
    panic!("{message}");
}
