//! The directory spool in other processes. Apart from the other tests of the spool: between `fork` and `exec` a new process
//! holds the locks of every lane that is open here, and a lane that was just closed would seem to be in use.
#![cfg(all(feature = "spool", unix))]

mod spool_folder;

use spool_folder::{Folder, adopt, id, opening};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tallymark::{DirectorySpool, Durability, Spool};

/// One test at a time, for the same reason.
static PROCESSES: Mutex<()> = Mutex::new(());

const PART: &str = "TALLYMARK_SPOOL_PART";

/// Runs a part of `child` in another process, in this directory.
fn run(part: &str, before: &str, folder: &Folder) {
    let output = std::process::Command::new("sh")
        .args(["-c", &format!("{before} exec \"$0\" --exact child")])
        .arg(std::env::current_exe().unwrap())
        .env(PART, part)
        .current_dir(&folder.0)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Not a test: the code of the other processes.
#[test]
fn child() {
    let Ok(part) = std::env::var(PART) else { return };
    let mut spool = DirectorySpool::open(Path::new("spool"), Durability::Process).unwrap();
    match part.as_str() {
        "elsewhere" => {
            std::env::set_current_dir("/").unwrap();
            spool.append(id(1), &opening(id(1))).unwrap();
            spool.seal(id(1), "\n]}").unwrap();
            assert!(spool.read(id(1)).is_ok());
        }
        "full" => {
            for _ in 0..2 {
                assert_eq!(adopt(&mut spool).segments.len(), 1);
                assert!(spool.read(id(1)).unwrap().ends_with("\n]}"));
                drop(spool);
                spool = DirectorySpool::open(Path::new("spool"), Durability::Process).unwrap();
            }
        }
        other => panic!("no such part: {other}"),
    }
}

#[test]
fn a_relative_directory_stays_where_it_is() {
    let _one = PROCESSES.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Folder::new();
    run("elsewhere", "", &folder);
    assert_eq!(folder.files("batch").len(), 1);
}

#[test]
fn what_was_left_is_taken_over_also_if_not_a_byte_more_fits() {
    let _one = PROCESSES.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Folder::new();
    let mut spool = DirectorySpool::open(&folder.0.join("spool"), Durability::Process).unwrap();
    spool.append(id(1), &opening(id(1))).unwrap();
    for _ in 0..400 {
        spool.append(id(1), ",\n{\"n\":1}").unwrap();
    }
    drop(spool);
    // Less than the length of the file.
    run("full", "trap '' XFSZ; ulimit -f 2;", &folder);
    assert_eq!(folder.files("open").len(), 1);
    assert_eq!(adopt(&mut DirectorySpool::open(&folder.0.join("spool"), Durability::Process).unwrap()).corrupt, 0);
}
