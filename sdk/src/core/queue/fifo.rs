//! A first-in-first-out list. `VecDeque` costs the browser a kilobyte of wasm.

/// First in, first out, in constant time on average.
#[derive(Debug)]
pub(super) struct Fifo<T> {
    /// In reverse order: the last is the first to leave.
    front: Vec<T>,
    back: Vec<T>,
}

impl<T> Fifo<T> {
    pub(super) const fn new() -> Self {
        Self { front: Vec::new(), back: Vec::new() }
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.front.last().or(self.back.first())
    }

    pub(super) fn push(&mut self, item: T) {
        self.back.push(item);
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        if self.front.is_empty() {
            core::mem::swap(&mut self.front, &mut self.back);
            self.front.reverse();
        }
        self.front.pop()
    }
}
