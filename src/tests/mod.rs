//! Unit tests of the structures that know no runtime, on a platform that only counts.

mod alarm;
mod list;
mod platform;
mod queue;
