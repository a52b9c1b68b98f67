-- {worker, calls} → nothing.

for _, call in ipairs(step.calls) do release(step.worker, call) end
