import assert from "node:assert/strict";
import { test } from "node:test";
import { bodyOf, errorsByField, fieldsOf, imageRefusal } from "../../../../gateway/panel/static/core/form.js";

const free = (minimum, maximum) => ({ fixed: null, default: minimum, minimum, maximum, step: null, offset: 0 });
const MODEL = {
  name: "any",
  constraints: {
    words: { min_chars: 1, max_chars: 20 },
    picture: { presence: "optional", max_bytes: 1000, max_pixels: 100, media_types: ["image/png"] },
    amount: free(1, 5),
    most_in_all: 900,
    pace: { fixed: 3, default: null, minimum: null, maximum: null, step: null, offset: 0 },
  },
};

test("a field's kind follows from its limits, and a limit of several fields is no field", () => {
  const found = fieldsOf(MODEL).map(({ name, kind, required }) => [name, kind, required]);
  assert.deepEqual(found, [
    ["words", "text", true],
    ["picture", "image", false],
    ["amount", "number", false],
    ["pace", "fixed", false],
  ]);
});

test("a model without images has no field for one, and one that needs them has a required one", () => {
  const withPresence = (presence) => fieldsOf({ constraints: { picture: { ...MODEL.constraints.picture, presence } } });
  assert.deepEqual(withPresence("unsupported"), []);
  assert.equal(withPresence("required")[0].required, true);
});

test("a request holds what was entered and nothing else", () => {
  const fields = fieldsOf(MODEL);
  const body = (values, image = null, priority = "") => bodyOf({ model: MODEL, fields, values, image, priority });
  assert.deepEqual(body({}), { model: "any" });
  assert.deepEqual(body({ words: " a fox ", amount: " 2 ", gone: "5" }, { uri: "data:x" }, "low"), {
    model: "any", words: " a fox ", picture: "data:x", amount: 2, priority: "low",
  });
  assert.deepEqual(body({ amount: "1,5" }), { model: "any", amount: 1.5 });
  assert.deepEqual(body({ amount: "many" }), { model: "any", amount: "many" }, "the gateway says what is wrong with it");
});

test("errors stand at their field, and the others over the form", () => {
  const errors = [
    { pointer: "/amount", message: "amount: expected 1 to 5, got 9" },
    { pointer: "/elsewhere", message: "elsewhere: no such field" },
  ];
  assert.deepEqual(errorsByField(errors, ["words", "amount"]), {
    amount: ["expected 1 to 5, got 9"],
    "": ["elsewhere: no such field"],
  });
});

test("an image is refused by the first limit that it breaks", () => {
  const limits = MODEL.constraints.picture;
  const good = { type: "image/png", bytes: 1000, width: 10, height: 10 };
  const why = (change) => imageRefusal({ ...good, ...change }, limits)?.why ?? null;
  assert.equal(why({}), null);
  assert.equal(why({ type: "image/gif", bytes: 1001 }), "type");
  assert.equal(why({ bytes: 1001, width: null }), "bytes");
  assert.equal(why({ width: null, height: null }), "unreadable");
  assert.equal(why({ width: 11 }), "pixels");
});
