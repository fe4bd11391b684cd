//! Breaking the code on purpose: a model that does not notice checks nothing.
//!
//! `loom-tests/mutants.toml` lists edits that each take one fix away. They are applied one at a
//! time to a copy of the workspace, and the named model must fail there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use duct::cmd;
use serde::Deserialize;

use crate::build::{self, Cargo};
use crate::shell::{self, End};
use crate::suites::Count;

/// After this long a model hangs. Loom reports a deadlock as a panic, so that is no catch.
const LIMIT: Duration = Duration::from_secs(180);

/// One entry of the list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    /// Relative to the workspace's root.
    file: PathBuf,
    /// Occurs exactly once in the file ...
    from: String,
    /// ... and is replaced by this.
    to: String,
    /// The test that must fail.
    model: String,
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
            bail!("two mutants are called `{}`", mutant.name);
        }
    }
    Ok(mutants)
}

/// The listed mutants, or the one called `only`.
fn list(only: Option<&str>) -> Result<Vec<Mutant>> {
    let file = build::root().join("loom-tests/mutants.toml");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let all = parse(&text).with_context(|| file.display().to_string())?;
    let Some(only) = only else { return Ok(all) };
    let names: Vec<_> = all.iter().map(|mutant| mutant.name.clone()).collect();
    match all.into_iter().find(|mutant| mutant.name == only) {
        Some(mutant) => Ok(vec![mutant]),
        None => bail!("no mutant `{only}`; there is: {}", names.join(", ")),
    }
}

/// The model that must catch the mutant `name`.
pub fn model_of(name: &str) -> Result<String> {
    Ok(list(Some(name))?.swap_remove(0).model)
}

/// Tries all mutants, or the one called `only`. Caught ones have passed.
pub fn run(only: Option<&str>) -> Result<Count> {
    let mutants = list(only)?;
    let tree = PathBuf::from(build::target_directory("mutants")?);
    // What did not change keeps its time stamp, so that little is compiled again.
    let built = [build::root().join("target"), build::target_directory("")?.into()];
    copy(build::root(), &tree, &|path| {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        !hidden && !built.iter().any(|built| path == built)
    })?;
    let mut count = Count::default();
    for mutant in &mutants {
        let begin = Instant::now();
        let result = try_one(mutant, &tree);
        let took = begin.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                println!("mutant {}: caught by {} ({took:.1} s)", mutant.name, mutant.model);
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
    let result = must_fail(mutant, tree);
    fs::write(&file, original)?;
    result
}

fn must_fail(mutant: &Mutant, tree: &Path) -> Result<()> {
    // A target directory of their own: cargo would take a mutant for the real tree's fresh build.
    let cargo = Cargo::host_with(&["--cfg", "loom"], "loom-mutants")?;
    let message = "--message-format=json-render-diagnostics";
    let arguments = ["--package", "loom-tests", "--release", "--tests", "--no-run", message];
    let command = cargo.command_in(tree, "test", &arguments);
    let built = shell::step(&format!("building the mutant {}", mutant.name), &command)?;
    let mut ran = false;
    for (_, program) in build::executables(&built.stdout) {
        let listed = cmd!(&program, "--list", "--format", "terse").read()?;
        let Some(test) = find_test(&listed, &mutant.model) else { continue };
        ran = true;
        let _doing = shell::doing(&format!("the model {} with {}", mutant.model, mutant.name));
        let model = cmd!(&program, "--exact", test).env("RUST_BACKTRACE", "0").stderr_null();
        match shell::lines(&model, LIMIT, |_| ())? {
            End::Exit(0) => {}
            End::Exit(_) => return Ok(()),
            End::TimeUp => {
                bail!("{} had not ended after {} s", mutant.model, LIMIT.as_secs())
            }
        }
    }
    if ran { bail!("{} passes", mutant.model) } else { bail!("no model `{}`", mutant.model) }
}

/// The full name of the test `model` among those that libtest lists.
fn find_test<'a>(listed: &'a str, model: &str) -> Option<&'a str> {
    let tests = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    tests.into_iter().find(|test| test.rsplit("::").next() == Some(model) || *test == model)
}

/// Makes `to` like `from`, as far as `wanted` says, and touches only what differs.
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
            model: "push_against_drain".into(),
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
        assert!(parse(&one.replace("model=", "modle=")).is_err());
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
