//! A table of things in flight, each with a key that is never used twice.

/// The key of an entry: its place, and how often the place was used before. As a number it goes over the wire as a
/// block id and to the runtime as a token; a stale one finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(u64);

impl Key {
    const INDEX_BITS: u32 = 24;
    const INDEX_MASK: u64 = (1 << Self::INDEX_BITS) - 1;

    const fn new(index: usize, generation: u64) -> Self {
        Self(generation << Self::INDEX_BITS | index as u64)
    }

    const fn index(self) -> usize {
        (self.0 & Self::INDEX_MASK) as usize
    }

    /// The number.
    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    /// The key with this number; it need not exist.
    pub(crate) const fn from_number(number: u64) -> Self {
        Self(number)
    }
}

struct Entry<T> {
    generation: u64,
    value: Option<T>,
}

/// The table. Warm, it allocates nothing.
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<usize>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            assert!((self.entries.len() as u64) < Key::INDEX_MASK, "more requests in flight than keys");
            // Generations start at 1: no key is 0.
            self.entries.push(Entry { generation: 1, value: None });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[index];
        assert!(entry.value.is_none(), "a free place is empty");
        entry.value = Some(value);
        Key::new(index, entry.generation)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        self.entries
            .get(key.index())
            .filter(|entry| Key::new(key.index(), entry.generation) == key)?
            .value
            .as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.index())?;
        if Key::new(key.index(), entry.generation) == key { entry.value.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(key.index())?;
        if Key::new(key.index(), entry.generation) != key {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation += 1;
        self.free.push(key.index());
        Some(value)
    }

    /// All entries, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| {
            entry.value.as_ref().map(|value| (Key::new(index, entry.generation), value))
        })
    }
}

impl<T> std::ops::Index<Key> for Slab<T> {
    type Output = T;

    fn index(&self, key: Key) -> &T {
        self.get(key).unwrap_or_else(|| panic!("no entry {key:?}"))
    }
}

impl<T> std::ops::IndexMut<Key> for Slab<T> {
    fn index_mut(&mut self, key: Key) -> &mut T {
        self.get_mut(key).unwrap_or_else(|| panic!("no entry {key:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_used_twice() {
        let mut slab = Slab::new();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_ne!(first, second);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(Key::from_number(second.number())), Some(&"second"));
        assert_eq!(slab.iter().count(), 1);
    }
}
