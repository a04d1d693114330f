//! No import circles: which file uses which is read from `use` lines and paths, and must be a graph without circles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The files below a folder, by their module path: `client::worker` for `client/worker.rs` and `client` for
/// `client/mod.rs`.
fn modules(folder: &Path, prefix: &str, found: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let module = if prefix.is_empty() { name.clone() } else { format!("{prefix}::{name}") };
        if path.is_dir() {
            modules(&path, &module, found);
        } else if name == "mod" {
            found.insert(prefix.into(), path);
        } else if name != "lib" {
            found.insert(module, path);
        }
    }
}

/// The modules that a file names, other than in comments and tests.
fn imports(module: &str, path: &Path, modules: &BTreeMap<String, PathBuf>) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap();
    let is_folder = path.ends_with("mod.rs");
    let mut found = BTreeSet::new();
    let mut add = |named: &str| {
        // The longest prefix that is a file.
        let parts: Vec<_> = named.split("::").collect();
        let longest = (1..=parts.len()).rev().map(|length| parts[..length].join("::"));
        found.extend(longest.into_iter().find(|prefix| modules.contains_key(prefix)));
    };
    for line in text.lines().take_while(|line| !line.starts_with("#[cfg(test)]") && !line.starts_with("#[cfg(all(test"))
    {
        let code = line.split("//").next().unwrap_or_default();
        assert!(!code.contains("crate::{"), "{module}: name one file in each `use`, so that this test can read it");
        for (at, _) in code.match_indices("crate::") {
            let named = &code[at + "crate::".len()..];
            add(&named[..named.find(|c: char| !c.is_alphanumeric() && !"_:".contains(c)).unwrap_or(named.len())]);
        }
        assert!(!code.contains("super::"), "{module}: name files by their path from `crate`");
        // A folder's own file names its children without their path.
        if let Some(named) = code.split_once("use ").map(|(_, named)| named.trim_end_matches(';')).filter(|_| is_folder)
        {
            let child = format!("{module}::{}", named.split([' ', ':', ';', '{']).next().unwrap_or_default());
            if modules.contains_key(&child) {
                add(&child);
            }
        }
    }
    found.remove(module);
    found
}

#[test]
fn there_are_no_import_circles_between_files() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = BTreeMap::new();
    modules(&source, "", &mut files);
    assert!(files.contains_key("client::worker") && files.contains_key("core::queue"), "{:?}", files.keys());
    let mut left: BTreeMap<_, _> =
        files.iter().map(|(module, path)| (module.clone(), imports(module, path, &files))).collect();
    assert!(left["client::builder"].contains("client::worker"));
    // Take away what uses nothing that is left, until nothing is left.
    while !left.is_empty() {
        let free: BTreeSet<_> =
            left.iter().filter(|(_, uses)| uses.is_empty()).map(|(module, _)| module.clone()).collect();
        assert!(!free.is_empty(), "these files import each other in a circle: {left:#?}");
        left.retain(|module, _| !free.contains(module));
        left.values_mut().for_each(|uses| uses.retain(|module| !free.contains(module)));
    }
}

#[test]
fn the_core_does_no_io_and_reads_no_clock() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core");
    let mut files = BTreeMap::new();
    modules(&core, "", &mut files);
    for path in files.values() {
        let text = fs::read_to_string(path).unwrap();
        for word in ["std::fs", "std::io", "std::net", "std::thread", "std::time", "std::sync", "tokio", "reqwest"] {
            assert!(!text.contains(word), "{} uses {word}", path.display());
        }
    }
}
