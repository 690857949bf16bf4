// Every command of wrangler for Workers KV against the REST API of a mesh.
//   node wrangler.mjs WRANGLER BASE_URL [ACCOUNT_ID]
// WRANGLER is its executable, BASE_URL ends in /client/v4. Without ACCOUNT_ID wrangler has to find the account itself. The
// token is taken from CLOUDFLARE_API_TOKEN. Files go to the working directory.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { suite } from "../suite.mjs";

const [wrangler, baseURL, account] = process.argv.slice(2);
const test = suite(account ? "wrangler" : "wrangler-no-account");
const env = {
  CLOUDFLARE_API_TOKEN: "x".repeat(40), ...process.env, CLOUDFLARE_API_BASE_URL: baseURL,
  WRANGLER_SEND_METRICS: "false", WRANGLER_HIDE_BANNER: "true", CI: "1", HOME: process.cwd(),
};
delete env.CLOUDFLARE_ACCOUNT_ID;
if (account) env.CLOUDFLARE_ACCOUNT_ID = account;

// run returns what a command prints; want is in it. A command that is to fail says why on either stream.
function run(args, { fails = false, want = "", raw = false } = {}) {
  const done = spawnSync(wrangler, args, { env, maxBuffer: 64 << 20, timeout: 180_000 });
  const all = `${done.stdout}${done.stderr}`;
  assert.equal(done.status !== 0, fails, `wrangler ${args.join(" ").slice(0, 200)}: ${done.status ?? done.error}\n${all.slice(0, 2000)}`);
  assert.ok(all.includes(want), `wrangler ${args.join(" ").slice(0, 200)}: no ${want} in\n${all.slice(0, 2000)}`);
  return raw ? done.stdout : String(done.stdout);
}
const title = `wrangler-${randomUUID()}`;
const namespaces = () => JSON.parse(run(["kv", "namespace", "list"]));
run(["kv", "namespace", "create", title], { want: "Success" });
const id = namespaces().find((ns) => ns.title === title).id;
const kv = (group, command, ...rest) => ["kv", group, command, ...rest, "--remote", `--namespace-id=${id}`];
const list = (...rest) => JSON.parse(run(kv("key", "list", ...rest)));

await test("whoami", () => run(["whoami"], { want: "kvmesh" }));
await test("namespace create", () => assert.match(id, /^[0-9a-f]{32}$/));
await test("namespace twice", () => run(["kv", "namespace", "create", title], { fails: true, want: "already exists" }));
await test("namespace rename", () => {
  run(["kv", "namespace", "rename", title, "--new-name", `${title}b`], { want: "renamed" });
  assert.ok(namespaces().some((ns) => ns.id === id && ns.title === `${title}b`));
});
const keys = ["plain", "a/b", "ü x", "%25", "+", "k".repeat(512)];
for (const key of keys) {
  await test(`key ${key.slice(0, 10)}`, () => {
    run(kv("key", "put", key, `value of ${key}`));
    assert.equal(run(kv("key", "get", key, "--text")).trim(), `value of ${key}`);
  });
}
await test("key list", () => assert.deepEqual(list().map((key) => key.name), [...keys].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))));
await test("key delete", () => {
  for (const key of keys) run(kv("key", "delete", key));
  run(kv("key", "get", "plain", "--text"), { fails: true, want: "404" });
  assert.deepEqual(list(), []);
});
await test("metadata and lifetime", () => {
  run(kv("key", "put", "meta", "v", "--metadata", '{"t": "ü", "n": [1]}', "--ttl", "1000"));
  const [key] = list("--prefix", "me");
  assert.deepEqual(key.metadata, { t: "ü", n: [1] });
  const left = key.expiration - Date.now() / 1000;
  assert.ok(left > 800 && left <= 1001, String(left));
  run(kv("key", "put", "meta", "v", "--expiration", "2000000000"));
  assert.deepEqual(list("--prefix", "me"), [{ name: "meta", expiration: 2_000_000_000 }]);
});
await test("binding of a configuration file", () => {
  writeFileSync("wrangler.json", JSON.stringify({ name: "worker", kv_namespaces: [{ binding: "KV", id }] }));
  run(["kv", "key", "put", "bound", "by its binding", "--remote", "--binding=KV", "--config=wrangler.json"]);
  assert.equal(run(kv("key", "get", "bound", "--text")).trim(), "by its binding");
  rmSync("wrangler.json");
});
await test("refused lifetime", () => run(kv("key", "put", "meta", "v", "--ttl", "10"), { fails: true, want: "Expiration TTL must be at least 60.' [code: 10034]" }));
for (const size of [0, 1000, 25 << 20]) {
  await test(`file of ${size} bytes`, () => {
    writeFileSync("value.bin", randomBytes(size));
    run(kv("key", "put", "file", "--path", "value.bin"));
    assert.ok(run(kv("key", "get", "file"), { raw: true }).equals(readFileSync("value.bin")));
    run(kv("key", "put", "file", "--path", "value.bin", "--metadata", '{"a": 1}'));
    assert.ok(run(kv("key", "get", "file"), { raw: true }).equals(readFileSync("value.bin")));
  });
}
await test("file that is too large", () => {
  writeFileSync("value.bin", randomBytes((25 << 20) + 1));
  run(kv("key", "put", "file", "--path", "value.bin"), { fails: true, want: "Value length of 26214401 exceeds limit of 26214400." });
});
await test("bulk put, list, get, delete of 25,000", () => {
  const items = Array.from({ length: 25_000 }, (_, i) => ({ key: `bulk/${i}`, value: `v${i}` }));
  items.push({ key: "bin", value: "AP8=", base64: true, metadata: { m: 1 }, expiration_ttl: 100 });
  writeFileSync("items.json", JSON.stringify(items));
  run(kv("bulk", "put", "items.json"), { want: "Success" });
  writeFileSync("get.json", JSON.stringify(["bulk/1", "bulk/24999", "none"]));
  assert.deepEqual(JSON.parse(run(kv("bulk", "get", "get.json")).replace(/\n+Success!?\n*$/, "")), { "bulk/1": "v1", "bulk/24999": "v24999", none: null });
  assert.deepEqual([...run(kv("key", "get", "bin"), { raw: true })], [0, 255]);
  const all = list("--prefix", "bulk/");
  assert.equal(all.length, 25_000);
  writeFileSync("list.json", JSON.stringify(all));
  run(kv("bulk", "delete", "list.json", "--force"), { want: "Success" });
  assert.deepEqual(list("--prefix", "bulk/"), []);
});
await test("namespace delete", () => {
  run(["kv", "namespace", "delete", `--namespace-id=${id}`, "--skip-confirmation"], { want: "Deleted" });
  assert.ok(!namespaces().some((ns) => ns.id === id));
});
