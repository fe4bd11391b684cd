//! `cargo xtask mutants`: applies edits that break the code, and checks that a test fails.
//!
//! `loom-tests/mutants.toml` and `tests/mutants.toml` list edits (mutants) that each remove one
//! fix. Each is applied alone to a copy of the workspace. There the named model, or the named test
//! of the suite on the named machine, must fail.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use duct::cmd;
use serde::Deserialize;

use crate::build::{self, Cargo};
use crate::machine::Machine;
use crate::qemu::Guest;
use crate::shell::{self, End};
use crate::tally::{Count, Tally};
use crate::workspace;

/// The program that contains the tests.
pub const SUITE: &str = "suite";
const LISTS: [&str; 2] = ["loom-tests/mutants.toml", "tests/mutants.toml"];

/// The time limit of a model. Exceeding it does not count as caught, as loom reports a deadlock by
/// a panic.
const LIMIT: Duration = Duration::from_secs(180);
/// The time limit of a kernel. Exceeding it counts as caught, as many mutants make a kernel hang.
const KERNEL_LIMIT: Duration = Duration::from_secs(60);

/// A checked entry of a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Entry")]
pub struct Mutant {
    name: String,
    file: PathBuf,
    from: String,
    to: String,
    pub catcher: Catcher,
}

/// The model or test that must fail.
#[derive(Clone, Debug, PartialEq)]
pub enum Catcher {
    Model(String),
    Test { machine: Machine, test: String },
}

impl std::fmt::Display for Catcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Model(model) => f.write_str(model),
            Self::Test { machine, test } => write!(f, "{test} on {}", machine.arch().name()),
        }
    }
}

/// An entry as it is written in a list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// Relative to the workspace's root.
    file: PathBuf,
    /// The text to replace, which occurs exactly once in the file.
    from: String,
    /// The replacement.
    to: String,
    /// The model that must fail. Excludes `test` and `arch`.
    model: Option<String>,
    /// The suite's test that must fail on the machine `arch`.
    test: Option<String>,
    arch: Option<Machine>,
}

impl TryFrom<Entry> for Mutant {
    type Error = String;

    fn try_from(entry: Entry) -> Result<Self, String> {
        let Entry { name, file, from, to, model, test, arch } = entry;
        let catcher = match (model, test, arch) {
            (Some(model), None, None) => Catcher::Model(model),
            (None, Some(test), Some(machine)) => Catcher::Test { machine, test },
            _ => {
                return Err(format!("`{name}` needs either a `model`, or a `test` and an `arch`"));
            }
        };
        Ok(Self { name, file, from, to, catcher })
    }
}

impl Mutant {
    fn apply(&self, text: &str) -> Result<String> {
        match text.matches(&self.from).count() {
            1 if self.from != self.to => Ok(text.replacen(&self.from, &self.to, 1)),
            1 => bail!("`from` and `to` are the same"),
            count => bail!("`from` occurs {count} times in {}", self.file.display()),
        }
    }
}

fn parse(text: &str) -> Result<Vec<Mutant>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct List {
        mutant: Vec<Mutant>,
    }
    let List { mutant: mutants } = toml::from_str(text)?;
    let mut names = BTreeMap::new();
    for mutant in &mutants {
        if names.insert(&mutant.name, ()).is_some() {
            bail!("two mutants are named `{}`", mutant.name);
        }
    }
    Ok(mutants)
}

/// Reads the lists; returns all mutants, or the one named `only`.
pub fn list(only: Option<&str>) -> Result<Vec<Mutant>> {
    let mut all = Vec::new();
    for list in LISTS {
        let text = fs::read_to_string(workspace::root().join(list)).context(list)?;
        all.extend(parse(&text).context(list)?);
    }
    let Some(only) = only else { return Ok(all) };
    let names: Vec<_> = all.iter().map(|mutant| mutant.name.clone()).collect();
    match all.into_iter().find(|mutant| mutant.name == only) {
        Some(mutant) => Ok(vec![mutant]),
        None => bail!("no mutant `{only}`; there is: {}", names.join(", ")),
    }
}

/// Tries these mutants; a caught one counts as passed. `setup::ensure` must have run for their
/// machines, and each catcher must pass without a mutant.
pub fn run(mutants: &[Mutant]) -> Result<Count> {
    let tree = PathBuf::from(workspace::target_directory("mutants")?);
    // Unchanged files keep their time stamps, so that little is compiled again.
    let built = [workspace::root().join("target"), workspace::target_directory("")?.into()];
    copy(workspace::root(), &tree, &|path| {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        !hidden && !built.iter().any(|built| path == built)
    })?;
    let mut count = Count::default();
    for mutant in mutants {
        let begin = Instant::now();
        let result = try_one(mutant, &tree);
        let took = begin.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                println!("mutant {}: caught by {} ({took:.1} s)", mutant.name, mutant.catcher);
                count.add(Count::PASSED);
            }
            Err(error) => {
                println!("mutant {}: NOT CAUGHT ({took:.1} s): {error:#}", mutant.name);
                count.add(Count::FAILED);
            }
        }
    }
    Ok(count)
}

fn try_one(mutant: &Mutant, tree: &Path) -> Result<()> {
    let file = tree.join(&mutant.file);
    let original = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    fs::write(&file, mutant.apply(&original)?)?;
    let result = match &mutant.catcher {
        Catcher::Model(model) => model_must_fail(&mutant.name, model, tree),
        Catcher::Test { machine, test } => test_must_fail(&mutant.name, *machine, test, tree),
    };
    fs::write(&file, original)?;
    result
}

const MESSAGE: &str = "--message-format=json-render-diagnostics";

fn model_must_fail(mutant: &str, model: &str, tree: &Path) -> Result<()> {
    // A separate target directory, as cargo would take a mutant for an up-to-date build of the real
    // tree.
    let cargo = Cargo::host_with(&["--cfg", "loom"], "loom-mutants")?;
    let arguments = ["--package", "loom-tests", "--profile=mutant", "--tests", "--no-run", MESSAGE];
    let command = cargo.command_in(tree, "test", &arguments);
    let built = shell::step(&format!("building the mutant {mutant}"), &command)?;
    let mut ran = false;
    for (_, program) in build::executables(&built.stdout) {
        let listed = cmd!(&program, "--list", "--format", "terse").read()?;
        let Some(test) = find_test(&listed, model) else { continue };
        ran = true;
        let _doing = shell::doing(&format!("the model {model} with {mutant}"));
        let command = cmd!(&program, "--exact", test).env("RUST_BACKTRACE", "0").stderr_null();
        match shell::lines(&command, LIMIT, |_| ())? {
            End::Exit(0) => {}
            End::Exit(_) => return Ok(()),
            End::TimeUp => bail!("{model} was killed after {} s", LIMIT.as_secs()),
        }
    }
    if ran { bail!("{model} passes") } else { bail!("no model `{model}`") }
}

fn test_must_fail(mutant: &str, machine: Machine, test: &str, tree: &Path) -> Result<()> {
    let arch = machine.arch();
    let Some(target) = arch.targets().first() else { bail!("{} is no target", arch.name()) };
    let directory = format!("{}-mutants", arch.name());
    let cargo = Cargo::for_target(arch, target)?.with_target_directory(&directory)?;
    let command = cargo.command_in(tree, "build", &["--profile=quick", "--test", SUITE, MESSAGE]);
    let built = shell::step(&format!("building the mutant {mutant}"), &command)?;
    let Some((_, kernel)) = build::executables(&built.stdout).pop() else {
        bail!("cargo names no executable")
    };
    let _doing = shell::doing(&format!("{test} with {mutant}"));
    let words = vec![format!("filter={test}")];
    let guest = Guest { machine, kernel, smp: 1, icount: true, cpu: None, words };
    let (mut tally, mut began) = (Tally::default(), false);
    let end = guest.lines(KERNEL_LIMIT, |line| {
        tally.line(line);
        began |= line.starts_with(&format!("test {test} ... "));
    })?;
    match (end, tally.count()) {
        _ if !began => bail!("the suite has no test `{test}`, or ended before it"),
        (End::Exit(0), Count { failed: 0, .. }) => bail!("{test} passes"),
        _ => Ok(()),
    }
}

/// Finds the full name of the test `model` in the list that libtest prints.
fn find_test<'a>(listed: &'a str, model: &str) -> Option<&'a str> {
    let tests = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    tests.into_iter().find(|test| test.rsplit("::").next() == Some(model) || *test == model)
}

/// Makes `to` a copy of those entries of `from` that are `wanted`. Equal files are not written.
fn copy(from: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in to.read_dir()? {
        let path = entry?.path();
        let source = from.join(path.file_name().unwrap_or_default());
        if path.is_dir() != source.is_dir() || !source.exists() {
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
    }
    for entry in from.read_dir().with_context(|| from.display().to_string())? {
        let source = entry?.path();
        if !wanted(&source) {
            continue;
        }
        let copied = to.join(source.file_name().unwrap_or_default());
        if source.is_dir() {
            copy(&source, &copied, wanted)?;
        } else {
            let content = fs::read(&source).with_context(|| source.display().to_string())?;
            if fs::read(&copied).ok().as_ref() != Some(&content) {
                fs::write(&copied, content)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(from: &str, to: &str) -> Mutant {
        Mutant {
            name: "m".into(),
            file: "src/ready.rs".into(),
            from: from.into(),
            to: to.into(),
            catcher: Catcher::Model("push_against_drain".into()),
        }
    }

    #[test]
    fn an_edit_must_be_unambiguous() {
        let text = "store(1, Release); load(Acquire)";
        let applied = mutant("Release", "Relaxed").apply(text);
        assert_eq!(applied.unwrap(), "store(1, Relaxed); load(Acquire)");
        let absent = mutant("SeqCst", "Relaxed").apply(text).unwrap_err().to_string();
        assert!(absent.contains("0 times in src/ready.rs"), "{absent}");
        let twice = mutant("e(", "f(").apply("e(e(").unwrap_err().to_string();
        assert!(twice.contains("2 times"), "{twice}");
        assert!(mutant("Release", "Release").apply(text).is_err());
    }

    #[test]
    fn the_list_is_read_strictly() {
        let one = "[[mutant]]\nname='a'\nfile='f'\nfrom='x'\nto='''\ny\n'''\nmodel='m'\n";
        let read = parse(one).unwrap();
        assert_eq!((&*read[0].name, &*read[0].to), ("a", "y\n"));
        assert_eq!(read[0].catcher, Catcher::Model("m".into()));
        assert!(parse(&one.replace("model=", "modle=")).is_err());
        assert!(parse(&one.replace("model=", "test=")).is_err());
        let test = parse(&one.replace("model='m'", "test='t'\narch='x86_64'")).unwrap();
        let machine = Machine::X86_64;
        assert_eq!(test[0].catcher, Catcher::Test { machine, test: "t".into() });
        let twice = parse(&[one, one].concat()).unwrap_err().to_string();
        assert!(twice.contains("`a`"), "{twice}");
    }

    #[test]
    fn a_model_is_found_by_its_whole_name() {
        let listed = "wake::against_poll_twice: test\nwake::against_poll: test\nbench: benchmark\n";
        assert_eq!(find_test(listed, "against_poll"), Some("wake::against_poll"));
        assert_eq!(find_test(listed, "wake::against_poll"), Some("wake::against_poll"));
        assert_eq!(find_test(listed, "against"), None);
        assert_eq!(find_test(listed, "bench"), None);
    }

    #[test]
    fn a_copy_touches_only_what_differs() {
        let place = std::env::temp_dir().join(format!("xtask-copy-{}", std::process::id()));
        let (from, to) = (place.join("from"), place.join("to"));
        fs::create_dir_all(from.join("src")).unwrap();
        fs::create_dir_all(from.join("target")).unwrap();
        fs::write(from.join("src/a"), "a").unwrap();
        fs::write(from.join("src/b"), "b").unwrap();
        let wanted = |path: &Path| !path.ends_with("target");
        copy(&from, &to, &wanted).unwrap();
        let stamp = |name: &str| fs::metadata(to.join(name)).unwrap().modified().unwrap();
        let before = stamp("src/a");
        fs::write(to.join("src/b"), "mutated").unwrap();
        fs::write(to.join("src/c"), "left over").unwrap();
        copy(&from, &to, &wanted).unwrap();
        assert_eq!(stamp("src/a"), before);
        assert_eq!(fs::read_to_string(to.join("src/b")).unwrap(), "b");
        assert!(!to.join("src/c").exists() && !to.join("target").exists());
        fs::remove_dir_all(place).unwrap();
    }
}
