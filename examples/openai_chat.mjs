// A streamed chat and a forced tool call, with OpenAI's library for Node.
//
//     npm install openai
//     node examples/openai_chat.mjs http://127.0.0.1:8000

import OpenAI from "openai";

const url = process.argv[2] ?? "http://127.0.0.1:8000";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is activation sparsity?" }];

const stream = await client.chat.completions.create({ model, messages, max_tokens: 60, stream: true });
for await (const chunk of stream) process.stdout.write(chunk.choices[0].delta.content ?? "");
console.log();

const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: {
      type: "object",
      properties: { city: { type: "string", enum: ["Oslo", "Lima"] } },
      required: ["city"],
    },
  },
};
const runner = client.chat.completions.stream({
  model,
  messages,
  tools: [weather],
  tool_choice: "required",
  max_tokens: 200,
});
const { choices } = await runner.finalChatCompletion();
const call = choices[0].message.tool_calls[0].function;
console.log(call.name, JSON.parse(call.arguments));
