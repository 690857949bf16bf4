// The cases of unstorage, whatever its driver: rest/unstorage.mjs runs them over HTTP, workerd/unstorage.mjs in a Worker.
// They use nothing but the language, because a Worker has no node:assert.

function same(got, want) {
  const [g, w] = [JSON.stringify(got), JSON.stringify(want)];
  if (g !== w) throw new Error(`it is ${g?.slice(0, 500)}, want ${w?.slice(0, 500)}`);
}

// inPieces runs work for all items, at most 50 at once.
async function inPieces(items, work) {
  for (let i = 0; i < items.length; i += 50) await Promise.all(items.slice(i, i + 50).map(work));
}

// cases of a storage that is empty; it is empty afterwards.
export const cases = [
  ["set and get", async (store) => {
    await store.setItem("a:b", "hello");
    same(await store.getItem("a:b"), "hello");
    await store.setItem("a:b", "hello again");
    same(await store.getItem("a:b"), "hello again");
  }],
  ["objects with a lifetime", async (store) => {
    await store.setItem("u x", { n: 1, text: "ü€😀" }, { ttl: 1000 });
    same(await store.getItem("u x"), { n: 1, text: "ü€😀" });
  }],
  ["odd keys", async (store) => {
    for (const key of ["ü x", "a+b", "100%", "k".repeat(512)]) {
      await store.setItem(key, `value of ${key}`);
      same(await store.getItem(key), `value of ${key}`);
      same((await store.getKeys()).includes(key), true);
      await store.removeItem(key);
      same(await store.getItem(key), null);
    }
  }],
  ["bytes", async (store) => {
    const bytes = Uint8Array.from({ length: 1000 }, (_, i) => i);
    await store.setItemRaw("raw", bytes);
    same([...new Uint8Array(await store.getItemRaw("raw"))], [...bytes]);
    await store.removeItem("raw");
  }],
  ["missing keys", async (store) => {
    same(await store.hasItem("a:b"), true);
    same(await store.hasItem("none"), false);
    same(await store.getItem("none"), null);
  }],
  ["keys", async (store) => {
    same((await store.getKeys()).sort(), ["a:b", "u x"]);
    same(await store.getKeys("a"), ["a:b"]);
  }],
  ["keys of more than one page", async (store) => {
    const names = Array.from({ length: 1010 }, (_, i) => `page:${String(i).padStart(4, "0")}`);
    await inPieces(names, (name) => store.setItem(name, name));
    same((await store.getKeys("page")).sort(), names);
    await inPieces(names, (name) => store.removeItem(name));
    same(await store.getKeys("page"), []);
  }],
  ["remove", async (store) => {
    await store.removeItem("a:b");
    same(await store.hasItem("a:b"), false);
  }],
  ["clear", async (store) => {
    await store.setItem("clear:1", "x");
    await store.clear();
    same(await store.getKeys(), []);
  }],
];
