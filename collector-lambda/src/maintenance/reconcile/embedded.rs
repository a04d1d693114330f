//! `reconcile` for a data directory: whether its counters are what is stored, and how they are repaired.

use crate::Error;
use crate::maintenance::reconcile::{self as compare, failed};
use crate::maintenance::snapshot::{LakeSnapshot, SEALED};
use crate::store::embedded::{database, lake};
use rusqlite::TransactionBehavior;
use std::path::Path;

/// What is stored, besides what was read: what has been removed by age, and what clients say they have lost,
/// which is in no line, so that of this only the sums can be wrong.
const UNREAD: &str = "
    INSERT INTO stored (username, event_type, key, hour, count) SELECT * FROM main.pruned WHERE true
        ON CONFLICT DO UPDATE SET count = count + excluded.count;
    INSERT INTO stored (username, event_type, key, hour, count)
        SELECT * FROM main.hours WHERE event_type = 'lost' AND key <> '';
";

const REPAIR: &str = "
    DELETE FROM main.totals WHERE (username, event_type, key) IN
        (SELECT username, event_type, key FROM differences WHERE hour IS NULL);
    INSERT INTO main.totals SELECT username, event_type, key, stored FROM differences
        WHERE hour IS NULL AND stored > 0;
    DELETE FROM main.hours WHERE (username, event_type, key, hour) IN
        (SELECT username, event_type, key, hour FROM differences WHERE hour IS NOT NULL);
    INSERT INTO main.hours SELECT username, event_type, key, hour, stored FROM differences
        WHERE hour IS NOT NULL AND stored > 0;
";

/// Names each counter that is not what is stored, and each line that cannot be read. Returns how many there are
/// that have not been repaired.
pub(crate) fn reconcile(folder: &Path, repair: bool, print: &dyn Fn(&str)) -> Result<u64, Error> {
    let _lock = repair.then(|| database::lock(folder)).transpose()?;
    let is_lost =
        database::is_missing(folder) && !database::log_is_left(folder) && lake::has_files(&folder.join("raw"))?;
    if repair && is_lost {
        return rebuild(folder, print);
    }
    compare(&LakeSnapshot::open(folder)?, repair, print)
}

/// Makes a database that counts what is in the lake, for a store that has lost its own.
fn rebuild(folder: &Path, print: &dyn Fn(&str)) -> Result<u64, Error> {
    print(
        "there is no database, so a new one is made. What only the old one knew is lost: which batches have been \
         received, so that a repeated batch is counted again; lines that were not in the lake yet; the counts of what \
         `prune` has removed, and of what clients have lost",
    );
    let snapshot = LakeSnapshot::of(database::create_new(folder)?, folder)?;
    if compare(&snapshot, true, print)? > 0 {
        return Err(Error::config("not made: what cannot be read would not be counted"));
    }
    snapshot.db.close().map_err(|(_, error)| failed(error))?;
    database::put_in_place(folder)?;
    Ok(0)
}

fn compare(snapshot: &LakeSnapshot, repair: bool, print: &dyn Fn(&str)) -> Result<u64, Error> {
    let behavior = if repair { TransactionBehavior::Immediate } else { TransactionBehavior::Deferred };
    let transaction = snapshot.begin(behavior)?;
    let mut unreadable = 0;
    let mut wrong = |what: String| {
        unreadable += 1;
        print(&what);
    };
    snapshot.read_files(SEALED, &mut wrong, false)?;
    snapshot.read_held(&mut wrong)?;
    let events = snapshot.count("seen")?;
    transaction.execute_batch(UNREAD).map_err(failed)?;
    compare::compare(&transaction)?;
    let found = compare::print_differences(&transaction, print)?;
    let pruned = transaction
        .query_row("SELECT coalesce(sum(count), 0) FROM main.pruned", [], |row| row.get::<_, u64>(0))
        .map_err(failed)?;
    print(&format!("{events} events stored, {pruned} removed by age: {found} counters differ"));
    if !repair || found == 0 {
        return Ok(found + unreadable);
    }
    if unreadable > 0 {
        return Err(Error::config("not repaired: what cannot be read would not be counted any more"));
    }
    if events + pruned == 0 {
        return Err(Error::config("not repaired: nothing is stored here, so the events are somewhere else"));
    }
    transaction
        .execute_batch(REPAIR)
        .and_then(|()| database::fill_leaders(&transaction))
        .and_then(|()| transaction.commit())
        .map_err(failed)?;
    print("repaired");
    Ok(0)
}
