// Every method, type and option of a Worker's KV binding, and every error that the server can give it, against a mesh. GET
// /cases answers the names of all cases, GET /?case=NAME runs one and GET / all of them, in their order, and answers
// {"passed": n, "failed": [{"name", "error"}]}. The namespace "workerd-client" has to exist, and "no such namespace" must not.

const cases = [];
const test = (name, run) => cases.push({ name, run });

class Failure extends Error {}

function same(got, want, what = "value") {
  const show = (v) => (v instanceof Map ? JSON.stringify([...v]) : JSON.stringify(v));
  if (show(got) !== show(want)) throw new Failure(`${what} is ${show(got)}, want ${show(want)}`);
}

// throws runs an operation that must fail with exactly this message.
async function throws(message, run) {
  let got = "nothing was thrown";
  try {
    got = `no error, but ${JSON.stringify(await run())}`;
  } catch (e) {
    got = e.message;
  }
  if (got !== message) throw new Failure(`got "${got}", want "${message}"`);
}

// eventually runs look until it does not throw, for what one node learns from another.
async function eventually(look) {
  for (let i = 0; ; i++) {
    try {
      return await look();
    } catch (e) {
      if (i === 300) throw e;
      await scheduler.wait(100);
    }
  }
}

// patient repeats writes that fail because the mesh elects a leader, as it does now and then on a machine that is busy with
// other things. They may be repeated: each has the same outcome however often it is carried out.
function patient(kv) {
  const again = (write) => async (...args) => {
    for (let i = 0; ; i++) {
      try {
        return await write.apply(kv, args);
      } catch (e) {
        const repeatable = args.every((a) => !(a instanceof ReadableStream));
        if (i === 20 || !repeatable || !/failed: 503 (outcome_unknown|no_leader|no_quorum|unavailable)/.test(e.message)) throw e;
        await scheduler.wait(250);
      }
    }
  };
  return new Proxy(kv, {
    get(kv, name) {
      const it = kv[name];
      if (typeof it !== "function") return it;
      return name === "put" || name === "delete" ? again(it) : it.bind(kv);
    },
  });
}

const MiB = 1 << 20;
const now = () => Math.floor(Date.now() / 1000);

function bytes(n) {
  const b = new Uint8Array(n);
  let x = 1;
  for (let i = 0; i < n; i++) {
    x = (Math.imul(x, 1103515245) + 12345) >>> 0;
    b[i] = x >>> 16;
  }
  return b;
}

async function digest(b) {
  return [...new Uint8Array(await crypto.subtle.digest("SHA-256", b))].join();
}

// A stream whose length nobody knows: workerd sends it in chunks.
function streamOf(b, piece = 100_000) {
  let at = 0;
  return new ReadableStream({
    pull(c) {
      if (at >= b.length) return c.close();
      c.enqueue(b.slice(at, (at += piece)));
    },
  });
}

// --- values and types

test("get of a missing key is null", async ({ KV }) => {
  same(await KV.get("missing"), null);
  same(await KV.get("missing", "json"), null);
  same((await KV.getWithMetadata("missing")).value, null);
  same((await KV.getWithMetadata("missing")).metadata, null, "metadata");
});

test("put and get a string in every type", async ({ KV }) => {
  await KV.put("text", '{"a":[1,"ü€😀"]}');
  same(await KV.get("text"), '{"a":[1,"ü€😀"]}');
  same(await KV.get("text", "text"), '{"a":[1,"ü€😀"]}');
  same(await KV.get("text", { type: "text" }), '{"a":[1,"ü€😀"]}');
  same(await KV.get("text", "json"), { a: [1, "ü€😀"] });
  same(new TextDecoder().decode(await KV.get("text", "arrayBuffer")), '{"a":[1,"ü€😀"]}');
  same(await new Response(await KV.get("text", "stream")).text(), '{"a":[1,"ü€😀"]}');
});

test("an unknown type is refused by the client", async ({ KV }) => {
  await KV.put("text", "x");
  await throws('Unknown response type. Possible types are "text", "arrayBuffer", "json", and "stream".', () => KV.get("text", "blob"));
});

test("put an ArrayBuffer, a view and an empty value", async ({ KV }) => {
  const b = bytes(1000);
  await KV.put("binary", b.buffer);
  same(await digest(await KV.get("binary", "arrayBuffer")), await digest(b));
  await KV.put("binary", b.subarray(10, 20));
  same([...new Uint8Array(await KV.get("binary", "arrayBuffer"))], [...b.subarray(10, 20)]);
  await KV.put("empty", "");
  same(await KV.get("empty"), "");
});

test("put a stream of known and of unknown length", async ({ KV }) => {
  const b = bytes(300_000);
  const fixed = new FixedLengthStream(b.length);
  const writing = fixed.writable.getWriter();
  const written = writing.write(b).then(() => writing.close());
  await KV.put("fixed", fixed.readable);
  await written;
  same(await digest(await KV.get("fixed", "arrayBuffer")), await digest(b));
  await KV.put("chunked", streamOf(b));
  same(await digest(await KV.get("chunked", "arrayBuffer")), await digest(b));
});

test("a value of 25 MiB, and as a stream", async ({ KV }) => {
  const b = bytes(25 * MiB);
  await KV.put("large", b);
  same(await digest(await KV.get("large", "arrayBuffer")), await digest(b));
  await KV.put("large-chunked", streamOf(b, MiB));
  const got = await new Response(await KV.get("large-chunked", "stream")).arrayBuffer();
  same(await digest(got), await digest(b));
});

test("25 MiB and one byte is 413, and the connection lives on", async ({ KV }) => {
  const message = "KV PUT failed: 413 Value length of 26214401 exceeds limit of 26214400.";
  await throws(message, () => KV.put("too-large", bytes(25 * MiB + 1)));
  await throws(message, () => KV.put("too-large", streamOf(bytes(25 * MiB + 1), MiB)));
  same(await KV.get("too-large"), null);
});

test("a stream that fails stores nothing", async ({ KV }) => {
  const broken = new ReadableStream({
    start(c) {
      c.enqueue(new TextEncoder().encode("half"));
      c.error(new Error("the source broke"));
    },
  });
  await throws("the source broke", () => KV.put("broken", broken));
  same(await KV.get("broken"), null);
});

test("other values are refused by the client", async ({ KV }) => {
  await throws(
    "KV put() accepts only strings, ArrayBuffers, ArrayBufferViews, and ReadableStreams as values.",
    () => KV.put("object", { a: 1 }),
  );
});

// --- keys

for (const key of ["a/b", "a//b/", "ü €/😀", "%25", "%", "+", "a b", "?q=1&r", "#", "\\", '"<>{}`|^[]', "bulk/get", "...", "x".repeat(512), "ü".repeat(256)]) {
  test(`key ${key.length > 20 ? `of ${key.length} characters, ${new TextEncoder().encode(key).length} bytes` : JSON.stringify(key)}`, async ({ KV }) => {
    await KV.put(key, "value of " + key, { metadata: key });
    same(await KV.get(key), "value of " + key);
    same((await KV.getWithMetadata(key)).metadata, key, "metadata");
    same((await KV.get([key])).get(key), "value of " + key, "bulk value");
    same((await KV.list({ prefix: key })).keys[0].name, key, "listed name");
    await KV.delete(key);
    same(await KV.get(key), null);
  });
}

test("a+b and a b are two keys", async ({ KV }) => {
  await KV.put("two a+b", "plus");
  await KV.put("two a b", "blank");
  same(await KV.get("two a+b"), "plus");
  same(await KV.get("two a b"), "blank");
  same((await KV.list({ prefix: "two a+" })).keys.map((k) => k.name), ["two a+b"], "listing");
  await KV.delete("two a+b");
  same(await KV.get("two a b"), "blank");
});

test("bad keys are refused by the client", async ({ KV }) => {
  for (const [method, call] of [["GET", (k) => KV.get(k)], ["PUT", (k) => KV.put(k, "x")], ["DELETE", (k) => KV.delete(k)]]) {
    await throws("Key name cannot be empty.", () => call(""));
    await throws('"." is not allowed as a key name.', () => call("."));
    await throws('".." is not allowed as a key name.', () => call(".."));
    await throws(`KV ${method} failed: 414 UTF-8 encoded length of 513 exceeds key length limit of 512.`, () => call("x".repeat(513)));
  }
});

// --- metadata

for (const metadata of [{ a: 1, b: [true, null, "ü€😀"] }, "text", "", 0, false, 12.5, [], {}, "line\nbreak \"quoted\" \\ \u2028"]) {
  test(`metadata ${JSON.stringify(metadata).replace("\u2028", "\\u2028")}`, async ({ KV }) => {
    await KV.put("meta", "v", { metadata });
    const got = await KV.getWithMetadata("meta");
    same(got.value, "v");
    same(got.metadata, metadata, "metadata");
    same((await KV.list({ prefix: "meta" })).keys[0].metadata, metadata, "listed metadata");
    same((await KV.getWithMetadata(["meta"])).get("meta").metadata, metadata, "bulk metadata");
  });
}

test("a put replaces metadata and expiration", async ({ KV }) => {
  await KV.put("replaced", "1", { metadata: { a: 1 }, expirationTtl: 1000 });
  same(typeof (await KV.list({ prefix: "replaced" })).keys[0].expiration, "number");
  await KV.put("replaced", "2");
  same((await KV.getWithMetadata("replaced")).metadata, null, "metadata");
  same((await KV.list({ prefix: "replaced" })).keys, [{ name: "replaced" }], "listing");
  await KV.put("replaced", "3", { metadata: null });
  same((await KV.getWithMetadata("replaced")).metadata, null, "metadata");
});

test("metadata of 1024 bytes, and of one more", async ({ KV }) => {
  const metadata = "m".repeat(1022);
  await KV.put("meta-limit", "v", { metadata });
  same((await KV.getWithMetadata("meta-limit")).metadata, metadata, "metadata");
  await throws("KV PUT failed: 413 Metadata length of 1025 exceeds limit of 1024.", () => KV.put("meta-limit", "v", { metadata: metadata + "m" }));
});

test("getWithMetadata in every type", async ({ KV }) => {
  await KV.put("typed", "[1]", { metadata: 7 });
  same((await KV.getWithMetadata("typed", "json")).value, [1]);
  same(new TextDecoder().decode((await KV.getWithMetadata("typed", "arrayBuffer")).value), "[1]");
  same(await new Response((await KV.getWithMetadata("typed", { type: "stream" })).value).text(), "[1]");
  same((await KV.getWithMetadata("typed", { type: "text", cacheTtl: 60 })).metadata, 7, "metadata");
});

test("cacheStatus is told", async ({ KV }) => {
  await KV.put("status", "v");
  await KV.get("status");
  same((await KV.getWithMetadata("status")).cacheStatus, "HIT", "cacheStatus");
});

// --- expiration

test("expiration and expirationTtl are listed", async ({ KV }) => {
  const at = now() + 1000;
  await KV.put("expires-at", "v", { expiration: at });
  same((await KV.list({ prefix: "expires-at" })).keys, [{ name: "expires-at", expiration: at }], "listing");
  await KV.put("expires-in", "v", { expirationTtl: 1000, expiration: 1 }); // the lifetime wins
  const left = (await KV.list({ prefix: "expires-in" })).keys[0].expiration - now();
  if (left < 900 || left > 1001) throw new Failure(`it expires in ${left} s, want 1000`);
  await KV.put("expires-in", "v", { expirationTtl: 60 });
});

test("bad expirations", async ({ KV }) => {
  const put = (o) => () => KV.put("never", "v", o);
  await throws("KV PUT failed: 400 Invalid expiration_ttl of 59. Expiration TTL must be at least 60.", put({ expirationTtl: 59 }));
  await throws("KV PUT failed: 400 Invalid expiration_ttl of 0. Please specify integer greater than 0.", put({ expirationTtl: 0 }));
  await throws("KV PUT failed: 400 Invalid expiration_ttl of -1. Please specify integer greater than 0.", put({ expirationTtl: -1 }));
  await throws("KV PUT failed: 400 Invalid expiration_ttl of 0. Please specify integer greater than 0.", put({ expirationTtl: NaN }));
  await throws(
    "KV PUT failed: 400 Invalid expiration of 1. Please specify integer greater than the current number of seconds since the UNIX epoch.",
    put({ expiration: 1 }),
  );
  const soon = now() + 50;
  await throws(`KV PUT failed: 400 Invalid expiration of ${soon}. Expiration times must be at least 60 seconds in the future.`, put({ expiration: soon }));
  await throws("KV PUT failed: 400 Invalid expiration_ttl of 1. Expiration TTL must be at least 60.", put({ expirationTtl: 1, expiration: now() + 1000 }));
  await throws(
    "Value out of range. Must be between -2147483648 and 2147483647 (inclusive).",
    put({ expiration: 2147483648 }),
  );
  same(await KV.get("never"), null);
});

test("a refused put of 20 MiB is told, and the connection lives on", async ({ KV }) => {
  for (const value of [() => bytes(20 * MiB), () => streamOf(bytes(20 * MiB), MiB)]) {
    await throws("KV PUT failed: 400 Invalid expiration_ttl of 5. Expiration TTL must be at least 60.", () => KV.put("never", value(), { expirationTtl: 5 }));
    same(await KV.get("never"), null);
  }
});

// --- cacheTtl

test("cacheTtl of 30, of a day and of Number.MAX_SAFE_INTEGER", async ({ KV }) => {
  await KV.put("cached", "v");
  for (const cacheTtl of [30, 86400, 2147483647]) {
    same(await KV.get("cached", { cacheTtl }), "v");
    same((await KV.get(["cached"], { cacheTtl })).get("cached"), "v", "bulk value");
  }
});

test("bad cacheTtl", async ({ KV }) => {
  await throws("KV GET failed: 400 Invalid cache_ttl of 29. Cache TTL must be at least 30.", () => KV.get("cached", { cacheTtl: 29 }));
  await throws("KV GET failed: 400 Invalid cache_ttl of 0. Cache TTL must be at least 30.", () => KV.get("cached", { cacheTtl: 0 }));
  await throws("KV GET_BULK failed: 400 Invalid cache_ttl of 29. Cache TTL must be at least 30.", () => KV.get(["cached"], { cacheTtl: 29 }));
});

// --- delete

test("delete, and delete again", async ({ KV }) => {
  await KV.put("deleted", "v");
  same(await KV.delete("deleted"), undefined);
  same(await KV.get("deleted"), null);
  same(await KV.delete("deleted"), undefined);
});

// --- list

test("list in pages", async ({ KV }) => {
  const names = [];
  for (let i = 0; i < 25; i++) names.push(`page/${String(i).padStart(3, "0")}`);
  await Promise.all(names.map((n, i) => KV.put(n, "v", i % 2 ? { metadata: { i } } : {})));
  let got = [];
  let pages = 0;
  let cursor;
  for (;;) {
    const page = await KV.list({ prefix: "page/", limit: 10, cursor });
    got.push(...page.keys);
    pages++;
    if (page.list_complete) {
      same("cursor" in page, false, "a cursor on the last page");
      break;
    }
    cursor = page.cursor;
  }
  same(pages, 3, "pages");
  same(got, names.map((name, i) => (i % 2 ? { name, metadata: { i } } : { name })), "keys");
});

test("list of nothing, with empty and absent options", async ({ KV }) => {
  const none = await KV.list({ prefix: "there is nothing of this name" });
  same(none.keys, [], "keys");
  same(none.list_complete, true, "list_complete");
  same((await KV.list({ prefix: "", cursor: "" })).keys.length > 0, true, "keys of everything");
  same((await KV.list({ prefix: null, limit: null, cursor: null })).keys.length > 0, true, "keys of everything");
  same((await KV.list()).keys.length > 0, true, "keys of everything");
  same((await KV.list({ limit: 0 })).keys.length > 0, true, "keys of everything"); // not sent
});

test("bad listings", async ({ KV }) => {
  await throws("KV GET failed: 400 Invalid key_count_limit of 1001. Please specify an integer less than 1000.", () => KV.list({ limit: 1001 }));
  await throws("KV GET failed: 414 UTF-8 encoded length of 513 exceeds key length limit of 512.", () => KV.list({ prefix: "x".repeat(513) }));
  await throws("KV GET failed: 400 Invalid cursor", () => KV.list({ cursor: "nonsense" }));
  await KV.put("cursor/1", "v");
  await KV.put("cursor/2", "v");
  const { cursor } = await KV.list({ prefix: "cursor/", limit: 1 });
  await throws("KV GET failed: 400 Invalid cursor", () => KV.list({ prefix: "other", cursor }));
  same((await KV.list({ prefix: "cursor/", limit: 1, cursor })).keys, [{ name: "cursor/2" }], "second page");
});

// --- bulk get

test("get of many keys, text and json, with metadata", async ({ KV }) => {
  await KV.put("many/1", "1", { metadata: { n: 1 } });
  await KV.put("many/2", '{"a":"ü"}');
  await KV.put("many/3", '""');
  const keys = ["many/1", "many/2", "many/3", "many/missing"];
  same(await KV.get(keys), new Map([["many/1", "1"], ["many/2", '{"a":"ü"}'], ["many/3", '""'], ["many/missing", null]]));
  same(await KV.get(keys, "json"), new Map([["many/1", 1], ["many/2", { a: "ü" }], ["many/3", ""], ["many/missing", null]]));
  same(await KV.get(keys, { type: "text", cacheTtl: 60 }), await KV.get(keys));
  const got = await KV.getWithMetadata(keys, "json");
  same(got.get("many/1"), { value: 1, metadata: { n: 1 } });
  same(got.get("many/3"), { value: "", metadata: null });
  same(got.get("many/missing"), null);
});

test("get of a hundred keys, and of one more", async ({ KV }) => {
  const keys = [];
  for (let i = 0; i < 101; i++) keys.push(`hundred/${i}`);
  await Promise.all(keys.slice(0, 100).map((k) => KV.put(k, "value of " + k)));
  same((await KV.get(keys.slice(0, 100))).get("hundred/99"), "value of hundred/99");
  await throws("KV GET_BULK failed: 400 You can request a maximum of 100 keys", () => KV.get(keys));
  await throws("KV GET_BULK failed: 400 You must request a minimum of 1 key", () => KV.get([]));
});

test("bad gets of many keys", async ({ KV }) => {
  await KV.put("many/text", "no json");
  const fails = (text, keys, o) => throws(`KV GET_BULK failed: ${text}`, () => KV.get(keys, o));
  await fails("400 At least one of the requested keys corresponds to a non-json value", ["many/text"], "json");
  await fails('400 "arrayBuffer" is not a valid type. Use "json" or "text"', ["many/text"], "arrayBuffer");
  await fails('400 "stream" is not a valid type. Use "json" or "text"', ["many/text"], { type: "stream" });
  await fails('400 Illegal key name ".". Please use a different name.', ["."]);
  await fails('400 Illegal key name "..". Please use a different name.', [".."]);
  await fails("400 Key names must not be empty", [""]);
  await fails("414 UTF-8 encoded length of 513 exceeds key length limit of 512.", ["x".repeat(513)]);
});

test("many keys of up to 25 MiB together", async ({ KV }) => {
  const piece = "ü".repeat(MiB); // 2 MiB
  const keys = [];
  for (let i = 0; i < 13; i++) keys.push(`heavy/${i}`);
  for (const k of keys) await KV.put(k, piece);
  const got = await KV.get(keys.slice(0, 12));
  same(keys.slice(0, 12).every((k) => got.get(k) === piece), true, "values");
  await throws("KV GET_BULK failed: 413 Total size of request exceeds the limit of 25MB", () => KV.get(keys));
  await KV.put("heavy/json", JSON.stringify([piece]));
  same((await KV.get(["heavy/json"], "json")).get("heavy/json"), [piece]);
  await KV.put("heavy/json", JSON.stringify([piece]) + "]");
  await throws("KV GET_BULK failed: 400 At least one of the requested keys corresponds to a non-json value", () => KV.get(["heavy/json"], "json"));
});

// --- the mesh

test("a write at one node is read at another", async ({ KV, FAR }) => {
  const value = crypto.randomUUID();
  same(await FAR.get("shared-" + value), null); // an absence is cached too
  await KV.put("shared-" + value, value, { metadata: { value } });
  const got = await eventually(async () => {
    const got = await FAR.getWithMetadata("shared-" + value, { cacheTtl: 86400 });
    same(got.value, value);
    return got;
  });
  same(got.metadata, { value }, "metadata");
});

test("an injected limit of staleness is kept", async ({ KV, BOUNDED }) => {
  const value = crypto.randomUUID();
  await KV.put("bounded", value);
  await eventually(async () => same(await BOUNDED.get("bounded"), value));
});

test("an unknown namespace is an error, not a missing key", async ({ NONE }) => {
  for (const [method, run] of [["GET", () => NONE.get("k")], ["PUT", () => NONE.put("k", "v")], ["DELETE", () => NONE.delete("k")], ["GET", () => NONE.list()], ["GET_BULK", () => NONE.get(["k"])]]) {
    let message = "nothing was thrown";
    try {
      await run();
    } catch (e) {
      message = e.message;
    }
    const want = `KV ${method} failed: 400 there is no namespace "no such namespace"`;
    if (!message.startsWith(want)) throw new Failure(`got "${message}", want "${want}…"`);
  }
});

test("many calls at once", async ({ KV }) => {
  const one = async (i) => {
    await KV.put(`busy/${i}`, String(i));
    same(await KV.get(`busy/${i}`), String(i));
    await throws("KV GET failed: 400 Invalid cache_ttl of 1. Cache TTL must be at least 30.", () => KV.get(`busy/${i}`, { cacheTtl: 1 }));
    await KV.delete(`busy/${i}`);
    same(await KV.get(`busy/${i}`), null);
  };
  await Promise.all(Array.from({ length: 100 }, (_, i) => one(i)));
});

export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    if (url.pathname === "/cases") return Response.json(cases.map(({ name }) => name));
    const only = url.searchParams.get("case");
    const bindings = Object.fromEntries(Object.entries(env).map(([name, kv]) => [name, patient(kv)]));
    const failed = [];
    let passed = 0;
    for (const { name, run } of cases) {
      if (only !== null && name !== only) continue;
      try {
        await run(bindings);
        passed++;
      } catch (e) {
        failed.push({ name, error: e instanceof Failure ? e.message : String(e) });
      }
    }
    return Response.json({ passed, failed });
  },
};
