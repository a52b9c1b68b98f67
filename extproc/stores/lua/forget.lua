-- {counters} → nothing.

for _, counter in ipairs(step.counters) do
  if counter.kind == "quota" then redis.call("HDEL", number_of(counter.key), "used") end
end
