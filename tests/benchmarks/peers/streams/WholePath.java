import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Optional;
import java.util.Set;
import java.util.zip.CRC32;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.StreamPartitioner;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;

/** The whole path: tasks, placement of the tenant, work (8 partitions), JSON state of the session, results. */
public final class WholePath {
    record Out(byte[] value, int place) {}

    static final class Route implements Processor<String, byte[], String, Out> {
        private ProcessorContext<String, Out> context;
        private KeyValueStore<String, Integer> places;

        @Override
        public void init(ProcessorContext<String, Out> given) {
            context = given;
            places = given.getStateStore("places");
        }

        @Override
        public void process(Record<String, byte[]> record) {
            Integer place = places.get(record.key());
            if (place == null) {
                CRC32 hash = new CRC32();
                hash.update(record.key().getBytes(StandardCharsets.UTF_8));
                place = (int) (hash.getValue() % Settings.PLACES);
                places.put(record.key(), place);
            }
            context.forward(new Record<>(record.key(), new Out(record.value(), place), record.timestamp()));
        }
    }

    static final class Perform implements Processor<String, byte[], String, byte[]> {
        private final ObjectMapper json = new ObjectMapper();
        private ProcessorContext<String, byte[]> context;
        private KeyValueStore<String, byte[]> sessions;

        @Override
        public void init(ProcessorContext<String, byte[]> given) {
            context = given;
            sessions = given.getStateStore("sessions");
        }

        @Override
        public void process(Record<String, byte[]> record) {
            try {
                JsonNode task = json.readTree(record.value());
                String tenant = record.key();
                String session = task.get("session").textValue();
                String key = tenant + "\0" + session;
                byte[] row = sessions.get(key);
                ObjectNode state = row == null ? json.createObjectNode() : (ObjectNode) json.readTree(row);
                long total = state.path("total").asLong() + task.get("payload").get("amount").asLong();
                long count = state.path("count").asLong() + 1;
                state.put("total", total).put("count", count);
                sessions.put(key, json.writeValueAsBytes(state));
                ObjectNode result = json.createObjectNode();
                result.put("task", task.get("id").textValue()).put("tenant", tenant).put("session", session);
                result.put("type", task.get("type").textValue()).put("status", "done").put("sequence", count);
                result.putObject("result").put("total", total);
                context.forward(new Record<>(tenant, json.writeValueAsBytes(result), record.timestamp()));
            } catch (IOException error) {
                throw new IllegalStateException(error);
            }
        }
    }

    public static void main(String[] arguments) throws InterruptedException {
        String work = Settings.of("WORK");
        Topology topology = new Topology();
        topology.addSource("tasks", Serdes.String().deserializer(), Serdes.ByteArray().deserializer(), Settings.of("IN"));
        topology.addProcessor("route", Route::new, "tasks");
        topology.addStateStore(Settings.store("places", Serdes.String(), Serdes.Integer()), "route");
        Serializer<Out> values = (topic, out) -> out.value();
        StreamPartitioner<String, Out> partitioner = (topic, key, out, count) -> Optional.of(Set.of(out.place()));
        topology.addSink("to-work", work, Serdes.String().serializer(), values, partitioner, "route");
        topology.addSource("work", Serdes.String().deserializer(), Serdes.ByteArray().deserializer(), work);
        topology.addProcessor("perform", Perform::new, "work");
        topology.addStateStore(Settings.store("sessions", Serdes.String(), Serdes.ByteArray()), "perform");
        topology.addSink(
            "results", Settings.of("OUT"), Serdes.String().serializer(), Serdes.ByteArray().serializer(), "perform");
        Settings.run(topology);
    }
}
