//! Numbered slots that are reused, with keys that notice reuse.

/// Names an item; a key of a removed item never names a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    index: u32,
    generation: u32,
}

struct Slot<T> {
    generation: u32,
    item: Option<T>,
}

/// A vector of slots with a free list. All operations are O(1).
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    /// Stores an item.
    pub fn insert(&mut self, item: T) -> Key {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.item = Some(item);
            return Key {
                index,
                generation: slot.generation,
            };
        }
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 slots fit in memory");
        self.slots.push(Slot {
            generation: 0,
            item: Some(item),
        });
        Key {
            index,
            generation: 0,
        }
    }

    /// Takes an item out; its key is dead from now on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let item = slot.item.take()?;
        // A slot whose generations are used up is retired.
        if slot.generation < u32::MAX {
            slot.generation += 1;
            self.free.push(key.index);
        }
        Some(item)
    }

    /// The item of a key, unless it was removed.
    pub fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        (slot.generation == key.generation).then_some(slot.item.as_ref())?
    }

    /// The item of a key, unless it was removed.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        (slot.generation == key.generation).then_some(slot.item.as_mut())?
    }

    /// The items in slot order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.item.as_ref())
    }

    /// Items stored.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.iter().count()
    }
}

impl<T> std::ops::Index<Key> for Slots<T> {
    type Output = T;
    fn index(&self, key: Key) -> &T {
        self.get(key).expect("the key names a stored item")
    }
}

impl<T> std::ops::IndexMut<Key> for Slots<T> {
    fn index_mut(&mut self, key: Key) -> &mut T {
        self.get_mut(key).expect("the key names a stored item")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_removed_item_does_not_name_its_successor() {
        let mut slots = Slots::default();
        let a = slots.insert('a');
        assert_eq!(slots.remove(a), Some('a'));
        let b = slots.insert('b');
        assert_eq!(b.index, a.index);
        assert_eq!((slots.get(a), slots.get(b)), (None, Some(&'b')));
        assert_eq!(slots.remove(a), None);
        assert_eq!(slots.len(), 1);
    }
}
