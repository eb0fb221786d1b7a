// Conversations in the browser's own database; without one (a private window may have none) they last as long as the tab.

const NAME = "headrace";
const STORE = "conversations";
const inMemory = new Map();
let opening = null;

function open() {
  opening ??= new Promise((resolve) => {
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
  return opening;
}

async function run(mode, work) {
  const database = await open();
  if (!database) return undefined;
  return new Promise((resolve, reject) => {
    const request = work(database.transaction(STORE, mode).objectStore(STORE));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** All of them, the newest first. */
export async function all() {
  const found = (await run("readonly", (store) => store.getAll())) ?? [...inMemory.values()];
  return found.sort((a, b) => b.at - a.at);
}

export async function keep(conversation) {
  const copy = structuredClone(conversation);
  if ((await run("readwrite", (store) => store.put(copy))) === undefined) inMemory.set(copy.id, copy);
}

export async function forget(id) {
  inMemory.delete(id);
  await run("readwrite", (store) => store.delete(id));
}
