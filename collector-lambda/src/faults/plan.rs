//! What is to go wrong: the faults there are, and the plan that says which calls meet them.

use crate::faults::call::Call;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What can happen to a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// `PutRecordBatch` takes the other records, but not the one of this number, counted from 1; without a
    /// number, it refuses about half of them.
    Fail(Option<usize>),
    /// Refused because there are too many calls: `ServiceUnavailableException`, or `ThrottlingException`.
    Throttle,
    /// DynamoDB refuses it with `ProvisionedThroughputExceededException`.
    Exceeded,
    /// A transaction is cancelled because another is at its item of this number, counted from 1; without a number,
    /// at any.
    Conflict(Option<usize>),
    /// A transaction is cancelled because an item gets too many writes.
    Crowded(Option<usize>),
    /// Refused with `AccessDeniedException`, as it would be however often it came.
    Denied,
    /// Answered 500, without effect.
    Error,
    /// The connection is cut, without effect.
    Cut,
    /// It takes effect and is answered 500.
    After,
    /// It takes effect and the connection is cut.
    AfterCut,
    /// It takes effect and the answer makes no sense.
    Garbage,
    /// It arrives twice, the second time without the token by which AWS knows a repetition, as if minutes had
    /// passed. The answer is that of the second.
    Twice,
    /// The same, with the answer of the first.
    TwiceFirst,
    /// A read is answered in part: a query by three items and where to go on, a batch of keys by the first three.
    Partial,
    /// It takes its time.
    Delay(Duration),
    /// It waits before it is passed on, until [`Proxy::release`](crate::faults::Proxy::release).
    Hold,
    /// It takes effect, and the answer waits.
    HoldAfter,
}

impl Fault {
    /// All that random calls meet unless a plan says otherwise: all but holds.
    pub const RANDOM: [Self; 15] = [
        Self::Fail(None),
        Self::Throttle,
        Self::Exceeded,
        Self::Conflict(None),
        Self::Crowded(None),
        Self::Denied,
        Self::Error,
        Self::Cut,
        Self::After,
        Self::AfterCut,
        Self::Garbage,
        Self::Twice,
        Self::TwiceFirst,
        Self::Partial,
        Self::Delay(Duration::from_millis(20)),
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fail(_) => "fail",
            Self::Throttle => "throttle",
            Self::Exceeded => "exceeded",
            Self::Conflict(_) => "conflict",
            Self::Crowded(_) => "crowded",
            Self::Denied => "denied",
            Self::Error => "error",
            Self::Cut => "cut",
            Self::After => "after",
            Self::AfterCut => "after-cut",
            Self::Garbage => "garbage",
            Self::Twice => "twice",
            Self::TwiceFirst => "twice-first",
            Self::Partial => "partial",
            Self::Delay(_) => "delay",
            Self::Hold => "hold",
            Self::HoldAfter => "hold-after",
        }
    }

    /// Whether AWS could do that to a call.
    fn can_meet(self, call: &Call) -> bool {
        match self {
            Self::Fail(_) => call.action == "PutRecordBatch",
            Self::Conflict(_) | Self::Crowded(_) => call.action == "TransactWriteItems",
            Self::Exceeded => call.is_dynamodb,
            Self::Partial => ["Query", "BatchGetItem"].contains(&call.action.as_str()),
            _ => true,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Fail(Some(number)) | Self::Conflict(Some(number)) | Self::Crowded(Some(number)) => {
                write!(f, ":{number}")
            }
            Self::Delay(time) => write!(f, ":{}", time.as_millis()),
            _ => Ok(()),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number)));
        let number = number.map(|number| number.parse::<u32>().map_err(|_| format!("{number:?} is no number")));
        match (name, number.transpose()?) {
            ("fail", Some(record)) => Ok(Self::Fail(Some(record as usize))),
            ("conflict", Some(item)) => Ok(Self::Conflict(Some(item as usize))),
            ("crowded", Some(item)) => Ok(Self::Crowded(Some(item as usize))),
            ("delay", Some(milliseconds)) => Ok(Self::Delay(Duration::from_millis(milliseconds.into()))),
            ("hold", None) => Ok(Self::Hold),
            ("hold-after", None) => Ok(Self::HoldAfter),
            (name, None) => Self::RANDOM.into_iter().find(|fault| fault.name() == name).ok_or_else(|| {
                let names: Vec<_> = Self::RANDOM.iter().map(|fault| fault.name()).collect();
                format!("there is no fault {name:?}; there are {}, hold and hold-after", names.join(", "))
            }),
            (name, Some(_)) => Err(format!("{name:?} takes no number")),
        }
    }
}

/// Lets certain calls meet a fault. Written `ACTION#NUMBER=FAULT`, such as `TransactWriteItems#2=after`: the second
/// such call. With `*` for the action, all calls are counted together; with `#2..`, all from the second on are
/// meant, and without a number, all.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    action: Option<String>,
    first: u64,
    last: u64,
    fault: Fault,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (calls, fault) = text.split_once('=').ok_or("a rule is ACTION#NUMBER=FAULT")?;
        let (action, number) = calls.split_once('#').unwrap_or((calls, "1.."));
        let parse = |number: &str| match number.parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{number:?} is no number of a call; the first is 1")),
        };
        let (first, last) = match number.strip_suffix("..") {
            Some(first) => (parse(first)?, u64::MAX),
            None => (parse(number)?, parse(number)?),
        };
        Ok(Self { action: (action != "*").then(|| action.into()), first, last, fault: fault.parse()? })
    }
}

/// Which calls meet which faults.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed of the random faults.
    pub seed: u64,
    /// The share of calls, of those that no rule is for, that meet a random fault: 0 to 1.
    pub rate: f64,
    /// The faults that random calls meet.
    pub kinds: Vec<Fault>,
    /// The actions that meet random faults; all if empty.
    pub only: Vec<String>,
    /// The first that is for a call decides.
    pub rules: Vec<Rule>,
    /// Whether transactions that are at the same item at once cancel each other, as in DynamoDB. Local AWS does
    /// one after the other.
    pub contention: bool,
}

impl Default for Plan {
    /// All calls pass.
    fn default() -> Self {
        Self { seed: 0, rate: 0.0, kinds: Fault::RANDOM.into(), only: Vec::new(), rules: Vec::new(), contention: false }
    }
}

impl Plan {
    /// What a call meets, the `nth` of its action and the `of_all`th of all, and the generator for what else is random.
    pub(super) fn choose(&self, call: &Call, nth: u64, of_all: u64) -> (Option<Fault>, StdRng) {
        let mut seed = Sha256::new();
        seed.update(self.seed.to_le_bytes());
        seed.update(nth.to_le_bytes());
        seed.update(&call.action);
        let mut random = StdRng::from_seed(seed.finalize().into());
        let is_for = |rule: &&Rule| match &rule.action {
            Some(action) => *action == call.action && (rule.first..=rule.last).contains(&nth),
            None => (rule.first..=rule.last).contains(&of_all),
        };
        if let Some(rule) = self.rules.iter().find(is_for) {
            return (Some(rule.fault).filter(|fault| fault.can_meet(call)), random);
        }
        let kinds: Vec<_> = self.kinds.iter().filter(|fault| fault.can_meet(call)).collect();
        let is_meant = self.only.is_empty() || self.only.contains(&call.action);
        if !is_meant || kinds.is_empty() || random.random::<f64>() >= self.rate {
            return (None, random);
        }
        (Some(*kinds[random.random_range(0..kinds.len())]), random)
    }
}
