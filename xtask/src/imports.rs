//! Reads which files of a crate import from which.
//!
//! A file imports from another if a `use`, or a path in its code or in its macros, leads to
//! something that the other file defines, or names the other file's module. Re-exports are followed
//! to the file that defines the name. A re-export (`pub use`, `pub(crate) use`) is itself no
//! import, except in the crate's root, unless the code of its file uses the name. Modules and
//! functions under `#[cfg(test)]`, and comments, do not count. Method calls and trait
//! implementations leave no path, so they are not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Ident, ImplItem, Item, Meta, Visibility};

/// The files of a crate and the imports between them.
#[derive(Debug, Default)]
pub struct Imports {
    /// Relative to the folder of the root file, without `.rs`: `lib`, `task/mod`.
    pub files: Vec<String>,
    /// For each pair (importing file, imported file), the paths that lead from one to the other.
    pub pairs: BTreeMap<(usize, usize), BTreeSet<String>>,
}

impl Imports {
    /// Reads the crate whose root file is `root` (`src/lib.rs`).
    pub fn of_crate(root: &Path) -> Result<Self> {
        Self::read(root, &|file| std::fs::read_to_string(file).ok())
    }

    fn read(root: &Path, text: &dyn Fn(&Path) -> Option<String>) -> Result<Self> {
        let folder = root.parent().unwrap_or(Path::new("")).to_owned();
        let mut reader = Reader { root: folder.clone(), text, tree: Tree::default() };
        let content = text(root).with_context(|| format!("cannot read {}", root.display()))?;
        reader.file(root, &content, None, folder)?;
        Ok(reader.tree.imports())
    }
}

type Segments = Vec<String>;

/// The modules of a crate; the first one is its root.
#[derive(Default)]
struct Tree {
    files: Vec<String>,
    modules: Vec<Module>,
}

#[derive(Default)]
struct Module {
    parent: Option<usize>,
    file: usize,
    /// Under one name there can be a type, a function and a macro, and one of each per `cfg`.
    names: BTreeMap<String, Vec<Binding>>,
    globs: Vec<Import>,
    /// The paths in its code and in its macros.
    paths: Vec<Segments>,
}

impl Module {
    fn imports(&self) -> impl Iterator<Item = &Import> {
        self.names.values().flatten().filter_map(|binding| match binding {
            Binding::Import(import) => Some(import),
            Binding::Module(_) | Binding::Item(_) => None,
        })
    }

    fn reexports(&self, name: &str) -> bool {
        let mut bindings = self.names.get(name).into_iter().flatten();
        bindings.any(|binding| matches!(binding, Binding::Import(import) if import.reexport))
    }
}

/// Whether a path says itself where it begins.
fn is_direct(path: &[String]) -> bool {
    path.len() > 1 && ["crate", "self", "super"].contains(&&*path[0])
}

/// What a name in a module stands for.
#[derive(Clone)]
enum Binding {
    Module(usize),
    /// An item that this file defines.
    Item(usize),
    Import(Import),
}

#[derive(Clone)]
struct Import {
    path: Segments,
    reexport: bool,
}

/// Where a path leads.
#[derive(Clone, Copy)]
enum Place {
    Module(usize),
    /// An item of this file.
    Item(usize),
}

impl Tree {
    fn imports(self) -> Imports {
        let mut pairs = BTreeMap::<_, BTreeSet<_>>::new();
        let mut by_name = Vec::new();
        for (id, module) in self.modules.iter().enumerate() {
            let others = |path: &Segments| {
                let places = self.resolve(id, path, &mut BTreeSet::new());
                let files = places.into_iter().map(|place| self.file_of(place));
                files.filter(|&file| file != module.file).collect::<Vec<_>>()
            };
            let imports = module.imports().chain(&module.globs);
            let counted = imports.filter(|import| id == 0 || !import.reexport);
            let direct = module.paths.iter().filter(|path| is_direct(path));
            for path in counted.map(|import| &import.path).chain(direct) {
                for file in others(path) {
                    pairs.entry((module.file, file)).or_default().insert(path.join("::"));
                }
            }
            for path in module.paths.iter().filter(|path| !is_direct(path)) {
                // A single name is an import only if its `use` was not counted.
                if path.len() > 1 || module.reexports(&path[0]) {
                    by_name.extend(others(path).into_iter().map(|file| (module.file, file, path)));
                }
            }
        }
        // A path that begins with an imported name is said only if it leads to one more file.
        let by_use: BTreeSet<_> = pairs.keys().copied().collect();
        for (from, to, path) in by_name {
            if !by_use.contains(&(from, to)) {
                pairs.entry((from, to)).or_default().insert(path.join("::"));
            }
        }
        Imports { files: self.files, pairs }
    }

    fn file_of(&self, place: Place) -> usize {
        match place {
            Place::Module(id) => self.modules[id].file,
            Place::Item(file) => file,
        }
    }

    /// Where `path` leads from the module `from`: nowhere if it begins with another crate's name.
    /// `seen` holds the names that are being resolved, as imports can name each other in a circle.
    fn resolve(
        &self,
        from: usize,
        path: &[String],
        seen: &mut BTreeSet<(usize, String)>,
    ) -> Vec<Place> {
        let Some((first, rest)) = path.split_first() else { return vec![] };
        let mut places = match &**first {
            "crate" => vec![Place::Module(0)],
            "self" => vec![Place::Module(from)],
            "super" => self.modules[from].parent.map(Place::Module).into_iter().collect(),
            name => self.lookup(from, name, seen),
        };
        for segment in rest {
            places = places
                .into_iter()
                .flat_map(|place| match place {
                    Place::Module(id) if segment == "super" => {
                        self.modules[id].parent.map(Place::Module).into_iter().collect()
                    }
                    Place::Module(id) if segment != "self" => {
                        let found = self.lookup(id, segment, seen);
                        // A macro can have made the item: then at least the module is known.
                        if found.is_empty() {
                            vec![Place::Item(self.modules[id].file)]
                        } else {
                            found
                        }
                    }
                    // A method, or a variant of an enum.
                    place => vec![place],
                })
                .collect();
        }
        places
    }

    fn lookup(&self, id: usize, name: &str, seen: &mut BTreeSet<(usize, String)>) -> Vec<Place> {
        if !seen.insert((id, name.to_owned())) {
            return vec![];
        }
        let module = &self.modules[id];
        let bindings = module.names.get(name).into_iter().flatten();
        let mut found: Vec<_> = bindings
            .flat_map(|binding| match binding {
                Binding::Module(id) => vec![Place::Module(*id)],
                Binding::Item(file) => vec![Place::Item(*file)],
                Binding::Import(import) => self.resolve(id, &import.path, seen),
            })
            .collect();
        if found.is_empty() {
            for glob in &module.globs {
                for place in self.resolve(id, &glob.path, seen) {
                    if let Place::Module(through) = place {
                        found.extend(self.lookup(through, name, seen));
                    }
                }
            }
        }
        seen.remove(&(id, name.to_owned()));
        found
    }
}

/// Builds the tree, one file after the other.
struct Reader<'a> {
    root: PathBuf,
    text: &'a dyn Fn(&Path) -> Option<String>,
    tree: Tree,
}

impl Reader<'_> {
    /// Reads `file`, whose modules are in `folder`, and returns its module.
    fn file(
        &mut self,
        file: &Path,
        content: &str,
        parent: Option<usize>,
        folder: PathBuf,
    ) -> Result<usize> {
        let syntax = syn::parse_file(content).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(&self.root).unwrap_or(file).with_extension("");
        self.tree.files.push(name.display().to_string());
        let number = self.tree.files.len() - 1;
        self.module(&syntax.items, number, parent, folder)
    }

    fn module(
        &mut self,
        items: &[Item],
        file: usize,
        parent: Option<usize>,
        folder: PathBuf,
    ) -> Result<usize> {
        let id = self.tree.modules.len();
        self.tree.modules.push(Module { parent, file, ..Module::default() });
        let mut of_module =
            Items { module: Module::default(), file, inner: vec![], exported: vec![] };
        items.iter().for_each(|item| of_module.visit_item(item));
        let Items { module, inner, exported, .. } = of_module;
        self.tree.modules[id] = Module { parent, file, ..module };
        for name in exported {
            self.bind(0, name, Binding::Item(file));
        }
        for inner in inner {
            let name = inner.ident.to_string();
            let child = match &inner.content {
                Some((_, items)) => self.module(items, file, Some(id), folder.join(&name))?,
                None => self.file_module(inner, id, &folder)?,
            };
            self.bind(id, name, Binding::Module(child));
        }
        Ok(id)
    }

    fn file_module(
        &mut self,
        module: &syn::ItemMod,
        parent: usize,
        folder: &Path,
    ) -> Result<usize> {
        let name = module.ident.to_string();
        if module.attrs.iter().any(|attribute| attribute.path().is_ident("path")) {
            bail!("the module `{name}` has a #[path], which this check does not follow");
        }
        let inside = folder.join(&name);
        for file in [folder.join(format!("{name}.rs")), inside.join("mod.rs")] {
            if let Some(content) = (self.text)(&file) {
                return self.file(&file, &content, Some(parent), inside);
            }
        }
        bail!("no file for the module `{name}` in {}", folder.display())
    }

    fn bind(&mut self, module: usize, name: String, binding: Binding) {
        self.tree.modules[module].names.entry(name).or_default().push(binding);
    }
}

/// Reads the items of one module.
struct Items<'ast> {
    module: Module,
    file: usize,
    /// Its modules, to be read afterwards.
    inner: Vec<&'ast syn::ItemMod>,
    /// The macros under `#[macro_export]`, which are names of the crate's root.
    exported: Vec<String>,
}

impl Items<'_> {
    fn bind(&mut self, name: &Ident, binding: Binding) {
        self.module.names.entry(name.to_string()).or_default().push(binding);
    }

    /// A `macro_rules!`.
    fn definition(&mut self, name: &Ident, it: &syn::ItemMacro) {
        self.bind(name, Binding::Item(self.file));
        if it.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")) {
            self.exported.push(name.to_string());
        }
        // `super` and `self` are relative to where the macro is used.
        let paths = paths_in(it.mac.tokens.clone()).into_iter();
        let ours = paths.filter(|path| path[0] != "super" && path[0] != "self");
        self.module.paths.extend(ours.filter(|path| path.len() > 1));
    }

    fn use_tree(&mut self, tree: &syn::UseTree, mut path: Segments, reexport: bool) {
        use syn::UseTree;
        match tree {
            UseTree::Path(inner) => {
                path.push(inner.ident.to_string());
                self.use_tree(&inner.tree, path, reexport);
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.use_tree(tree, path.clone(), reexport));
            }
            UseTree::Glob(_) => self.module.globs.push(Import { path, reexport }),
            UseTree::Name(syn::UseName { ident, .. })
            | UseTree::Rename(syn::UseRename { ident, .. }) => {
                // `a::{self}` binds `a`.
                let mut name = ident.clone();
                if ident != "self" {
                    path.push(ident.to_string());
                } else if let Some(last) = path.last() {
                    name = Ident::new(last, ident.span());
                }
                if let UseTree::Rename(rename) = tree {
                    name = rename.rename.clone();
                }
                self.bind(&name, Binding::Import(Import { path, reexport }));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Items<'ast> {
    fn visit_item(&mut self, item: &'ast Item) {
        let defined = match item {
            Item::Mod(module) => {
                if !is_test(&module.attrs) {
                    self.inner.push(module);
                }
                return;
            }
            Item::Use(it) => {
                if !is_test(&it.attrs) && it.leading_colon.is_none() {
                    let reexport = !matches!(it.vis, Visibility::Inherited);
                    self.use_tree(&it.tree, vec![], reexport);
                }
                return;
            }
            Item::Macro(it) => match &it.ident {
                Some(name) if !is_test(&it.attrs) => return self.definition(name, it),
                _ => (None, &it.attrs),
            },
            Item::Const(it) => (Some(&it.ident), &it.attrs),
            Item::Enum(it) => (Some(&it.ident), &it.attrs),
            Item::Fn(it) => (Some(&it.sig.ident), &it.attrs),
            Item::Static(it) => (Some(&it.ident), &it.attrs),
            Item::Struct(it) => (Some(&it.ident), &it.attrs),
            Item::Trait(it) => (Some(&it.ident), &it.attrs),
            Item::Type(it) => (Some(&it.ident), &it.attrs),
            Item::Union(it) => (Some(&it.ident), &it.attrs),
            Item::Impl(it) => (None, &it.attrs),
            _ => return visit::visit_item(self, item),
        };
        if is_test(defined.1) {
            return;
        }
        if let Some(name) = defined.0 {
            self.bind(name, Binding::Item(self.file));
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Const(it) => &it.attrs,
            ImplItem::Fn(it) => &it.attrs,
            ImplItem::Type(it) => &it.attrs,
            ImplItem::Macro(it) => &it.attrs,
            _ => return visit::visit_impl_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_foreign_item(&mut self, item: &'ast syn::ForeignItem) {
        match item {
            syn::ForeignItem::Fn(it) => self.bind(&it.sig.ident, Binding::Item(self.file)),
            syn::ForeignItem::Static(it) => self.bind(&it.ident, Binding::Item(self.file)),
            _ => {}
        }
        visit::visit_foreign_item(self, item);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let segments = path.segments.iter().map(|segment| segment.ident.to_string());
            self.module.paths.push(segments.collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, it: &'ast syn::Macro) {
        let paths = paths_in(it.tokens.clone());
        self.module.paths.extend(paths.into_iter().filter(|path| path.len() > 1));
        visit::visit_macro(self, it);
    }

    // `pub(super)` and the paths in attributes import nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

/// Whether an item under these attributes is compiled for tests alone.
fn is_test(attributes: &[Attribute]) -> bool {
    fn demands_test(meta: &Meta) -> bool {
        match meta {
            Meta::Path(path) => path.is_ident("test"),
            Meta::List(list) if list.path.is_ident("all") => {
                let parse = syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated;
                list.parse_args_with(parse).is_ok_and(|all| all.iter().any(demands_test))
            }
            _ => false,
        }
    }
    let mut conditions = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    conditions.any(|cfg| cfg.parse_args().is_ok_and(|condition: Meta| demands_test(&condition)))
}

/// The paths among a macro's tokens, and the single names too. `$crate` is `crate`.
fn paths_in(tokens: TokenStream) -> Vec<Segments> {
    let mut found = Vec::new();
    let mut path = Segments::new();
    // The number of colons since the last name, or since a path of another crate began.
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(name) => {
                if colons != 2 && !path.is_empty() {
                    found.push(std::mem::take(&mut path));
                }
                if colons == 2 && path.is_empty() {
                    // `::core::…`: the rest of it is no path of ours either.
                    path.push(String::new());
                }
                path.push(name.to_string());
                colons = 0;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                let inside = paths_in(group.stream());
                // `a::{b, c::d}`
                let is_tree = colons == 2 && group.delimiter() == Delimiter::Brace;
                let prefix = if is_tree { &path[..] } else { &[] };
                found.extend(inside.into_iter().map(|rest| [prefix, &rest].concat()));
                found.extend((!path.is_empty()).then(|| std::mem::take(&mut path)));
                colons = 0;
            }
            _ => {
                found.extend((!path.is_empty()).then(|| std::mem::take(&mut path)));
                colons = 0;
            }
        }
    }
    found.extend((!path.is_empty()).then_some(path));
    found.retain(|path| path.first().is_some_and(|first| !first.is_empty()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The imports of a crate of these files, as `importing -> imported`.
    fn imports(files: &[(&str, &str)]) -> Vec<String> {
        let text = |file: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == file);
            found.map(|(_, content)| (*content).to_owned())
        };
        let Imports { files, pairs } = Imports::read(Path::new("lib.rs"), &text).unwrap();
        pairs.keys().map(|&(from, to)| format!("{} -> {}", files[from], files[to])).collect()
    }

    #[test]
    fn nested_use_trees_are_followed() {
        let found = imports(&[
            ("lib.rs", "mod a; mod b; mod c; mod d;"),
            ("a.rs", "use crate::{\n    b::{self, One as Uno},\n    c::{Two, inner::*},\n};"),
            ("b.rs", "pub struct One;"),
            ("c.rs", "pub struct Two; pub mod inner {}"),
            ("d.rs", "use super::a; use core::mem; use ::b::x;"),
        ]);
        assert_eq!(found, ["a -> b", "a -> c", "d -> a"]);
    }

    #[test]
    fn a_reexport_leads_to_the_file_that_defines() {
        let found = imports(&[
            ("lib.rs", "mod house; mod user; pub use house::Door;"),
            ("house/mod.rs", "mod door; pub use door::{Door, Handle as Knob};"),
            ("house/door.rs", "pub struct Door; pub struct Handle;"),
            ("user.rs", "use crate::Door; use crate::house::Knob;"),
        ]);
        assert_eq!(found, ["lib -> house/door", "user -> house/door"]);
    }

    #[test]
    fn a_reexport_that_its_file_uses_is_an_import() {
        let found = imports(&[
            ("lib.rs", "mod house;"),
            ("house/mod.rs", "mod door; pub use door::Door; struct Wall(Door);"),
            ("house/door.rs", "pub struct Door;"),
        ]);
        assert_eq!(found, ["house/mod -> house/door"]);
    }

    #[test]
    fn paths_in_code_and_in_macros_count() {
        let found = imports(&[
            ("lib.rs", "mod a; mod b; mod c; mod d; mod e;"),
            ("a.rs", "fn f() { crate::b::g::<crate::c::C>(); println!(\"{}\", crate::d::N) }"),
            ("b.rs", "pub fn g<T>() {}"),
            ("c.rs", "pub struct C; impl C { fn h() { use crate::d; d::k() } }"),
            ("d.rs", "pub const N: u8 = 0; macro_rules! m { () => { $crate::e::{f, x::y} }; }"),
            ("e.rs", "pub(super) fn f() {}"),
        ]);
        assert_eq!(found, ["a -> b", "a -> c", "a -> d", "c -> d", "d -> e"]);
    }

    #[test]
    fn a_path_through_an_imported_module_leads_to_the_last_file() {
        let found = imports(&[
            ("lib.rs", "mod task; mod user;"),
            ("task/mod.rs", "pub mod join;"),
            ("task/join.rs", "pub struct Join;"),
            ("user.rs", "use crate::task; fn f(_: task::join::Join) {}"),
        ]);
        assert_eq!(found, ["user -> task/mod", "user -> task/join"]);
    }

    #[test]
    fn super_in_a_macro_is_relative_to_its_use() {
        let found = imports(&[
            ("lib.rs", "mod a; mod b; fn root() {}"),
            ("a.rs", "macro_rules! m { () => { super::f(); crate::b::g() } } mod inner { m!(); }"),
            ("b.rs", "pub fn g() {} fn h() { m!(super::root()) }"),
        ]);
        assert_eq!(found, ["a -> b", "b -> lib"]);
    }

    #[test]
    fn an_exported_macro_is_a_name_of_the_root() {
        let found = imports(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "#[macro_export] macro_rules! make { () => {}; }"),
            ("b.rs", "crate::make!();"),
        ]);
        assert_eq!(found, ["b -> a"]);
    }

    #[test]
    fn tests_comments_and_other_crates_do_not_count() {
        let found = imports(&[
            ("lib.rs", "mod a; mod b;"),
            (
                "a.rs",
                "//! See [`B`](crate::b::B).\n// crate::b\n\
                 #[cfg(test)] mod tests { use crate::b::B; }\n\
                 #[cfg(all(test, unix))] use crate::b;\n\
                 #[cfg(test)] fn f() { crate::b::g() }\n\
                 impl A { #[cfg(test)] fn f() { crate::b::g() } }\n\
                 pub(in crate::b) struct A; fn h() { m!(::b::B, \"crate::b\") }",
            ),
            ("b.rs", "pub struct B;"),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn inline_modules_belong_to_their_file() {
        let found = imports(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use inner::X; mod inner { use super::super::b::B; pub struct X; mod deep; }"),
            ("a/inner/deep.rs", "use super::X;"),
            ("b.rs", "pub struct B;"),
        ]);
        assert_eq!(found, ["a -> b", "a/inner/deep -> a"]);
    }

    #[test]
    fn imports_that_name_each_other_end() {
        let found = imports(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "pub use crate::b::X; use crate::b::Y;"),
            ("b.rs", "pub use crate::a::X; pub use alloc::alloc; pub struct Y;"),
        ]);
        assert_eq!(found, ["a -> b"]);
    }

    #[test]
    fn a_module_without_a_file_is_an_error() {
        let error = Imports::read(Path::new("lib.rs"), &|file| {
            (file == Path::new("lib.rs")).then(|| "mod gone;".to_owned())
        });
        assert!(error.unwrap_err().to_string().contains("`gone`"));
    }
}
