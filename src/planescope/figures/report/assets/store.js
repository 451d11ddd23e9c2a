// What is chosen on the page, and who wants to know when that changes.

function createStore(initial) {
  let state = Object.freeze({ ...initial });
  const listeners = new Set();
  return {
    get state() {
      return state;
    },
    subscribe(listener) {
      listeners.add(listener);
    },
    choose(changes) {
      if (Object.entries(changes).every(([key, value]) => state[key] === value)) return;
      state = Object.freeze({ ...state, ...changes });
      for (const listener of listeners) listener(state);
    },
  };
}
